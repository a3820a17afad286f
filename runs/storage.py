"""This file writes files whole or not at all, and reads torch files without running anything that is in them."""

import contextlib
import io
import os
import pickle
import warnings
import zipfile
from pathlib import Path

from settings.errors import Refused


def replace(path: Path, content, keep: Path | None = None) -> None:
    """Write `content` to a new file beside `path`, sync it, then rename it to `path`; `keep` is the old file's new path.

    An OSError leaves everything as it was.
    """
    fresh = path.with_name(f"{path.name}.new")
    try:
        with fresh.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    if keep is not None and path.exists():
        path.replace(keep)
    fresh.replace(path)
    # the folder is synced too, so that a power cut does not bring the old names back
    directory = os.open(path.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def unused(path: Path) -> Path:
    """`path` itself or, where it exists, the first free one of path-2, path-3, ... with the same suffix."""
    number, candidate = 2, path
    while candidate.exists():
        candidate, number = path.with_name(f"{path.stem}-{number}{path.suffix}"), number + 1
    return candidate


def packed(state: dict):
    """The bytes of a torch file that holds these tensors and plain values."""
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getbuffer()


def read_tensors(path: Path, what: str, keys: set[str], newest: int) -> dict:
    """The tensors and plain values of a torch file, which must have the keys `keys` and a "format" of at most `newest`.

    Raises Refused if it is missing, damaged, foreign, newer, or holds code; `what` is the word for the file in messages.
    """
    import torch

    foreign = f"'{path}' is no {what} of this program"
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise Refused(f"'{path}' is damaged")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of a foreign pickle, which is refused here anyway
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise Refused(f"no {what} at '{path}'") from None
    except pickle.UnpicklingError:
        raise Refused(f"{foreign}: it holds something other than tensors and values") from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, TypeError, IndexError, zipfile.BadZipFile):
        raise Refused(f"'{path}' is truncated or no {what}") from None
    if not isinstance(state, dict) or not isinstance(state.get("format"), int):
        raise Refused(foreign)
    if state["format"] > newest:
        raise Refused(f"'{path}' has format {state['format']}, newer than this program's {newest}: update the program")
    if not keys <= state.keys():
        raise Refused(foreign)
    return state
