"""This file writes files whole or not at all, and never through a link; it reads torch files without running what is in them.

A run's folder may come from anybody: a link in it that bears the name of a file to write must not lead to another file.
"""

import contextlib
import errno
import io
import json
import os
import pickle
import stat
import warnings
import zipfile
from pathlib import Path

from settings.errors import Failed, Refused
from settings.files import Damaged, fitting, read_whole
from settings.schema import ANYTHING, DEEPEST, Record, Unfit, check

MOST = 1 << 35  # bytes of a torch file; a checkpoint of the largest network here has a thirtieth of it
# what a file system says that cannot do what is asked; a folder on CIFS, a mount of WSL or NFS
NOT_OFFERED = {errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def replace(path: Path, content, keep: Path | None = None) -> None:
    """Write `content` to a new file beside `path`, sync it, then rename it to `path`; `keep` is the old file's new path.

    An OSError leaves everything as it was.
    """
    fresh = path.with_name(f"{path.name}.new")
    try:
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()  # of a run that was killed while it wrote
        with _opened(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
            file.write(content)
            file.flush()
            _sync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    if keep is not None and path.exists():
        path.replace(keep)
    fresh.replace(path)
    # the folder is synced too, so that a power cut does not bring the old names back
    with contextlib.suppress(PermissionError):  # Windows opens no folder
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            _sync(directory)
        finally:
            os.close(directory)


def append(path: Path, content: bytes) -> None:
    """Write `content` behind what the file holds, which is made where it does not exist."""
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as file:
        file.write(content)


def held(path: Path):
    """Hold the file at `path`, which is made where it does not exist, for as long as the process lives or the file is open.

    Returns the open file, and a line for stderr where the system has no locks, else an empty text. None for the file if
    another process holds it.
    """
    file = _opened(path, os.O_RDWR | os.O_CREAT)
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return file, f"'{path.parent}' is not locked, for lack of locks on this system: let no other process write to it"
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            file.close()
            return None, ""
        if error.errno not in NOT_OFFERED:
            file.close()
            raise
        return file, f"'{path.parent}' is not locked ({error.strerror}): let no other process write to it"
    return file, ""


def _opened(path: Path, flags: int):
    """Open a regular file to write bytes to; what it holds stays. OSError where `path` is a link, a pipe or a device."""
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags, 0o666), "wb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return file


def _sync(descriptor: int) -> None:
    """Have a file or a folder on the disk; where the file system cannot promise that, go on."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise


def as_json(record, indent: int | None = None) -> bytes:
    """Return a record as lines of JSON. Failed if it holds a number that is not finite, which JSON does not have."""
    try:
        return (json.dumps(record, indent=indent, allow_nan=False) + "\n").encode()
    except ValueError:
        raise Failed(f"a record would hold a number that is not finite: {_not_finite(record)}") from None


def _not_finite(record, where: str = "") -> str:
    """Return where a record holds a number that is not finite; empty where it holds none."""
    if isinstance(record, float):
        return "" if abs(record) < float("inf") else f"{where or 'it'} is {record}"
    pairs = record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list | tuple) else ()
    return next(filter(None, (_not_finite(value, f"{where}.{name}".strip(".")) for name, value in pairs)), "")


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

    `what` is the word for the file in messages. Raises Missing where nothing is there, Damaged for a file that is not whole,
    and Refused if it cannot be read, is foreign or newer, holds code, or asks for more than is in it.
    """
    content = read_whole(path, what, MOST)
    foreign = f"'{path}' is no {what} of this program"
    _check_archive(content, path, what)
    try:
        state = _loaded(content)
    except pickle.UnpicklingError:
        raise Refused(f"{foreign}: it holds something other than tensors and values") from None
    except Exception:  # whatever torch raises for a pickle that nobody's torch.save wrote
        raise Refused(foreign) from None
    with fitting(path, what):
        _check_values(state, len(content))
        if not isinstance(state, dict) or type(state.get("format")) is not int or state["format"] < 0:
            raise Unfit("it has no format")
        if state["format"] > newest:
            raise Refused(f"'{path}' has format {state['format']}, newer than this program's {newest}: update the program")
        check(state, Record(dict.fromkeys(keys, ANYTHING), dict.fromkeys(state, ANYTHING)))
    return state


def read_elsewhere(path: Path) -> object:
    """What a torch file holds that another program has written, an archive or, as older ones, none; unchecked.

    None for a file that is damaged, or was written by this program. Raises as `read_whole` does, and Refused for one of torch's
    archives that holds code.
    """
    what = "trained network"
    content = read_whole(path, what, MOST)
    is_archive = zipfile.is_zipfile(io.BytesIO(content))
    try:
        if is_archive:
            _check_archive(content, path, what)
        state = _loaded(content)
    except pickle.UnpicklingError:
        if is_archive:
            raise Refused(f"'{path}' holds a whole module, or other code, which is not run: save its state_dict()") from None
        return None
    except Exception:  # whatever torch raises for a pickle that nobody's torch.save wrote
        return None
    return None if isinstance(state, dict) and type(state.get("format")) is int else state


def _loaded(content: bytes):
    """Return the tensors and plain values of a torch file, on the CPU. Whatever torch raises where it holds anything else."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of a foreign pickle
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _check_archive(content: bytes, path: Path, what: str) -> None:
    """Raise Damaged unless the bytes are a whole archive, and Refused for one that unpacks to more than is in it."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            # torch compresses nothing
            if any(entry.compress_type for entry in entries) or sum(entry.file_size for entry in entries) > len(content):
                raise Refused(f"'{path}' is no {what} of this program: it is compressed")
            damaged = archive.testzip() is not None
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, RuntimeError):
        raise Damaged(f"'{path}' is truncated or no {what}") from None
    if damaged:
        raise Damaged(f"'{path}' is damaged")


def _check_values(state, size: int) -> None:
    """Raise Unfit unless `state`, from a file of `size` bytes, is made of plain values and of dense tensors that fit into it."""
    import torch

    waiting, count = [(state, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        # a value takes a byte at the least, unless a list stands in many places
        if depth > DEEPEST or count > size:
            raise Unfit("it is nested too deep")
        if isinstance(value, dict):
            waiting += [(inner, depth + 1) for pair in value.items() for inner in pair]
        elif isinstance(value, list | tuple):
            waiting += [(inner, depth + 1) for inner in value]
        elif isinstance(value, torch.Tensor):
            plain = type(value) is torch.Tensor and value.layout is torch.strided and value.device.type == "cpu"
            if not plain or value.is_quantized or value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise Unfit("a tensor in it has more values than the file")
        elif not (value is None or type(value) in (bool, int, float, str)):
            raise Unfit(f"it holds a {type(value).__name__}")
