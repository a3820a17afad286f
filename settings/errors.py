"""This file names the three ways in which a command ends early; one guard turns each into a line and an exit status."""

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


def one_line(text: str) -> str:
    """Return a message with its line breaks and other characters that no terminal should obey, or cannot show, escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


@contextmanager
def guard(program: str) -> Iterator[None]:
    """End `program` with one line on stderr and the error's exit status; of several processes only the first one speaks.

    An OSError, by which the system refuses something, counts as Failed. Where the reader of stdout has gone, as `head` does,
    the program ends without a word and with the status that the shell gives for that, 128 + SIGPIPE.
    """
    try:
        try:
            yield
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # at the interpreter's end a reader that has gone would be a traceback
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still in its buffer goes nowhere
        raise SystemExit(128 + signal.SIGPIPE) from None
    except (EndedEarly, OSError) as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"{program}: error: {one_line(str(error))}", file=sys.stderr)
        raise SystemExit(getattr(error, "status", 1)) from None
