"""Files that last: written whole or not at all, and read without running anything that is in them."""

import contextlib
import io
import os
import pickle
import warnings
import zipfile
from pathlib import Path

from settings.errors import Refused


def replace(path: Path, content, keep: Path | None = None) -> None:
    """Write a file beside its place first, synced, then rename it; `keep` is where the old one goes.

    OSError leaves everything as it was.
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
    # the names too: a power cut may not bring the old ones back
    directory = os.open(path.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def unused(path: Path) -> Path:
    """The path, or with the first number that is free."""
    number, candidate = 2, path
    while candidate.exists():
        candidate, number = path.with_name(f"{path.stem}-{number}{path.suffix}"), number + 1
    return candidate


def packed(state: dict):
    """Tensors and plain values as the bytes of a torch file."""
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getbuffer()


def read_tensors(path: Path, what: str, keys: set[str], newest: int) -> dict:
    """A torch file of tensors and plain values that has these keys, and a `format` up to `newest`.

    Refused if it is missing, damaged, foreign, newer, or holds code; `what` is the word for it in messages.
    """
    import torch

    foreign = f"'{path}' is no {what} of this program"
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise Refused(f"'{path}' is damaged")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a foreign pickle is refused, not remarked on
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
