"""This file names the three ways in which a command ends early; one guard turns each into a line and an exit status."""

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class EndedEarly(Exception):
    """A command ends early. The message is one line for the user; `status` is the exit status."""

    status = 1


class Refused(EndedEarly):
    """What was asked cannot be done: a wrong flag, data set or file. Nothing has begun; exit status 2."""

    status = 2


class Failed(EndedEarly):
    """The work that was begun did not succeed, for example because the loss diverged; exit status 1."""


class Stopped(EndedEarly):
    """The signal `number` asked the command to end; exit status 128 + number."""

    def __init__(self, number: signal.Signals, message: str):
        super().__init__(message)
        self.number = number
        self.status = 128 + number


class _Patient(io.FileIO):
    """A stream that goes on when nobody reads it any longer: what cannot be written is dropped, and `trouble` is kept."""

    trouble: OSError | None = None

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.trouble = self.trouble or error
            return len(data)


def one_line(text) -> str:
    """Return a text in which line breaks, terminal escapes and bytes of no encoding are spelt out, such as \\n and \\x1b."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(text))


@contextmanager
def guard(program: str, goes_on: bool = False) -> Iterator[None]:
    """End `program` with one line on stderr and the error's exit status; of several processes only the first one speaks.

    An OSError, by which the system refuses something, counts as Failed, and so do a lack of memory and the end of another
    process of the team. Letters that a stream's encoding lacks are written as escapes. Where the reader of stdout has gone,
    as `head` does, the program ends without a word and with the status that the shell gives for that, 128 + SIGPIPE;
    one that `goes_on` comes to its own end, and fails only then if what it said could not be written for another reason.
    """
    patient = _prepare_streams(goes_on)
    try:
        try:
            yield
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # at the interpreter's end a reader that has gone would be a traceback
        if patient is not None and patient.trouble is not None and not isinstance(patient.trouble, BrokenPipeError):
            raise Failed(f"not all of stdout could be written: {patient.trouble.strerror}")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still in its buffer goes nowhere
        raise SystemExit(128 + signal.SIGPIPE) from None
    except (EndedEarly, OSError, MemoryError, RuntimeError) as error:
        message = str(error) if isinstance(error, EndedEarly | OSError) else _explained(error)
        if message is None:
            raise
        if os.environ.get("RANK", "0") == "0":
            print(f"{program}: error: {one_line(message)}", file=sys.stderr)
        raise SystemExit(getattr(error, "status", 1)) from None


def _explained(error: MemoryError | RuntimeError) -> str | None:
    """Return what the user should know of an error that torch or Python raised; None for one that only a traceback tells."""
    text = str(error)
    if isinstance(error, MemoryError) or "not enough memory" in text or "out of memory" in text or "can't allocate" in text:
        return "not enough memory: try a smaller --batch_size, or images of fewer pixels"
    peers = ("closed by peer", "reset by peer", "gloo", "NCCL", "Broken pipe")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and any(word in text for word in peers):
        return "another process of the team has ended: start them all again, with --resume where the run had begun"
    return None


def _prepare_streams(goes_on: bool) -> _Patient | None:
    """Make stdout and stderr take any letter, and one that is closed lead nowhere; returns the raw stdout if it `goes_on`."""
    for number in range(3):  # a file that is opened later must not get the number of a closed stream
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = sys.stdout or os.fdopen(1, "w", closefd=False), sys.stderr or os.fdopen(2, "w", closefd=False)
    patient = {name: _patient(name) if goes_on else None for name in ("stdout", "stderr")}
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    return patient["stdout"]


def _patient(name: str) -> _Patient | None:
    """Put a patient stream in the place of sys.stdout or sys.stderr, if that is a real one; returns its raw file."""
    stream = getattr(sys, name)
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # without a buffer between, if Python was told so
    if isinstance(raw, _Patient) or not isinstance(raw, io.FileIO):
        return raw if isinstance(raw, _Patient) else None
    stream.flush()
    patient = _Patient(raw.fileno(), "w", closefd=False)
    by_line = name == "stderr" or buffer is raw or patient.isatty()
    setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(patient), encoding=stream.encoding, line_buffering=by_line))
    return patient
