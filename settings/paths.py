"""This file finds what a run named by a relative path, when the program is called from another folder than then."""

import os
from pathlib import Path


def began_in(folder: str | Path) -> str:
    """Return the current folder as seen from `folder`, so that both may be moved together: what a run's record keeps."""
    return os.path.relpath(Path.cwd(), folder)


def located(path: str, folder: str | Path, began: str | None) -> str:
    """Return a path that a run was given, as seen from the current folder.

    `folder` holds the record of the run and `began` is what `began_in` gave for it then. The path stays as it is if it is
    absolute, if the record is older, or if nothing is where the run has found it.
    """
    if began is None or Path(path).is_absolute():
        return path
    there = Path(folder) / began / path
    return os.path.relpath(there) if there.exists() else path
