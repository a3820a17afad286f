"""This file finds files: what a run named by a relative path, from another folder than then, and the model of a run."""

import os
from pathlib import Path

TORCHVISION = "torchvision:"  # what --init begins with, where it names no file but weights that torchvision downloads


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


def model_of(path: str | Path) -> Path:
    """Return the model.pt that a path names: the one in a run's folder, or the file itself."""
    return Path(path) / "model.pt" if Path(path).is_dir() else Path(path)


def checkpoint_of(path: str | Path) -> Path:
    """Return the checkpoint that a path names: the newest one in a run's folder, or the file itself."""
    return Path(path) / "checkpoint.pt" if Path(path).is_dir() else Path(path)


def network_of(path: str | Path) -> Path:
    """Return the file that holds the last network of what a path names: of a run's folder, or the file itself.

    In a folder that is model.pt or, where there is none or it is older than a run that goes on, the newest checkpoint.
    """
    file, checkpoint = model_of(path), checkpoint_of(path)
    ended = (Path(path) / "summary.json").exists() or not checkpoint.exists()
    return file if file.is_file() and ended else checkpoint


def taken_in_first(path: str) -> str:
    """Return the words that say how weights from elsewhere become a run, which says of which network and data they are."""
    begun = f"--arch NAME --init {path} --epochs 0 --out_dir RUN"
    return f"'{path}' is from elsewhere: begin with it, by {begun}, and type --teacher RUN"
