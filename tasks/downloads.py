"""This file finds and reads the data sets that torchvision knows; what is missing is downloaded, and all is MD5-checked."""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

from settings.errors import Refused


def archive_folder(directory: Path, archive: str) -> Path:
    """Return the folder in which the unpacked archive lies: `directory`, the one above or one below it, if it is there."""
    if directory.name == archive:
        return directory.parent
    if (directory / archive).is_dir() or not directory.is_dir():
        return directory
    return next((child for child in sorted(directory.iterdir()) if (child / archive).is_dir()), directory)


def torchvision_parts(source: Callable, name: str, directory: Path) -> list:
    """Return the training and the test set that torchvision's class `source` reads from a directory, or downloads to it.

    Refused if the data is not usable and cannot be downloaded.
    """
    # torchvision's own messages are not part of the run's output
    with contextlib.redirect_stdout(sys.stderr):
        return [_part(source, name, directory, train) for train in (True, False)]


def _part(source, name: str, directory: Path, train: bool):
    """Return torchvision's training or test set. Refused if it is not usable and cannot be downloaded."""
    unusable = (RuntimeError, OSError, EOFError, ValueError)
    try:
        return source(str(directory), train=train, download=False)
    except unusable:
        try:
            return source(str(directory), train=train, download=True)
        except unusable as error:
            with contextlib.suppress(OSError):
                directory.rmdir()  # torchvision made it for the download; if it holds anything it stays
            reason = " ".join(str(error).split())[:200]
            raise Refused(
                f"no usable {name} in '{directory}' and its download failed ({reason}): put the official archive there, "
                "or use --dataset digits, or --dataset folder"
            ) from None
