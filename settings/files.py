"""This file reads files that anybody may have made: only regular ones, whole, and JSON only as far as a schema allows.

What can go wrong is told apart, because a file that is damaged may be replaced and one that could not be read may not:
`Missing`, `Damaged`, and Refused for everything else.
"""

import difflib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from settings.errors import Refused
from settings.schema import Schema, Unfit, check

MOST_JSON = 1 << 28  # bytes; 300 epochs of the largest rows are a hundredth of it


class Missing(Refused):
    """There is no such file."""


class Damaged(Refused):
    """The file was read, and is not whole."""


def read_whole(path: str | Path, what: str, most: int) -> bytes:
    """Return the bytes of a regular file; `what` is the word for the file in messages.

    Raises Missing where nothing is there; Refused for what is no regular file, such as a folder, a pipe or a device, has
    more than `most` bytes, or cannot be read.
    """
    try:
        # without O_NONBLOCK a pipe that nobody writes to would be waited for
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Refused(f"'{path}' is no regular file, but a {what} is wanted")
            if status.st_size > most:
                raise Refused(f"'{path}' has {status.st_size} bytes, more than any {what}")
            return file.read()
    except IsADirectoryError:
        raise Refused(f"'{path}' is a folder, but a {what} is wanted") from None
    except (FileNotFoundError, NotADirectoryError):
        raise Missing(f"no {what} at {nowhere(path)}") from None
    except (OSError, ValueError) as error:  # ValueError: the name holds a null byte
        raise Refused(f"cannot read '{path}': {getattr(error, 'strerror', None) or error}") from None


def read_json(path: str | Path, what: str, schema: Schema):
    """Return what the JSON file holds, which the schema allows. Raises as `read_whole` does, and as `parse_json`."""
    return parse_json(read_whole(path, what, MOST_JSON), path, what, schema)


def parse_json(content: bytes, path: str | Path, what: str, schema: Schema):
    """Return what a JSON text from `path` holds. Damaged if it is none; Refused for what the schema does not allow."""
    try:
        value = json.loads(content.decode(), object_pairs_hook=_once)
    except RecursionError:
        raise Refused(f"'{path}' is no {what} of this program: it is nested too deep") from None
    except ValueError:
        raise Damaged(f"'{path}' is damaged, or no {what}: it is no JSON") from None
    with fitting(path, what):
        check(value, schema)
    return value


@contextmanager
def fitting(path: str | Path, what: str) -> Iterator[None]:
    """Refuse the file at `path`, by Refused, where a check in this context finds its content Unfit."""
    try:
        yield
    except Unfit as error:
        raise Refused(f"'{path}' is no {what} of this program: {error}") from None


def _once(pairs: list[tuple]) -> dict:
    """Return a JSON table; of a name that stands twice in it nobody knows which value is meant."""
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError
    return table


def nowhere(path: str | Path) -> str:
    """Return a path that does not exist as messages tell it: in quotes, where it was looked for, and what is near."""
    whole = Path(path).absolute()
    try:
        parent = next(folder for folder in whole.parents if folder.is_dir())
        names = sorted(os.listdir(parent))
    except (OSError, ValueError, StopIteration):
        return f"'{path}'"
    near = difflib.get_close_matches(whole.relative_to(parent).parts[0], names, n=1)
    said = "" if Path(path).is_absolute() else f" (looked for {whole})"
    return f"'{path}'{said}" + (f": did you mean '{near[0]}' in '{parent}'?" if near and near[0] not in whole.parts else "")
