"""This file says how argparse reads a flag: one dataclass holds all that is known of it, and functions make its types."""

import argparse
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from settings.effects import Condition
from settings.errors import Refused
from settings.registry import Registry


@dataclass(frozen=True)
class Flag:
    """A flag: in which section of the settings its value stands, what it is for, and how argparse reads it.

    `kind` says what it changes: the method (what is computed), the engine (where and how fast), the output (what is written
    and said), the ending (what is done after the last mask), or the use of a model file. `{listing}` in `help` is replaced
    by the entries of `registry`, `{names}` by their names; a value is checked against that registry.
    """

    name: str
    section: str
    kind: Literal["method", "engine", "output", "ending", "use"]
    help: str
    type: Callable | None = None
    default: object = None
    choices: Callable[[], Iterable[str]] | tuple = ()
    action: str | None = None
    nargs: str | None = None
    metavar: str | tuple | None = None
    opposite: str = ""  # the help of --no_NAME, for a switch that has one
    registry: Registry | None = None
    # what may be typed with --resume: the run's own value, any, at least the run's; "anew" is any, and the run's is forgotten
    on_resume: Literal["same", "any", "more", "anew"] = "same"
    noted: bool = False  # another value on --resume is written down: the run does not end bit for bit as it would have
    goes_with: tuple[str, ...] = ()  # the flags of kind "use" that it may be typed with
    no_effect: tuple[Condition, ...] = ()  # each says when, and in which words it is refused
    resolved: tuple = ()  # values that cannot be typed, and that it has where other flags say so
    tells_apart: bool | None = None  # whether runs that differ in it are rows of their own in a table; None: by its kind

    @property
    def makes_a_row(self) -> bool:
        """Whether runs that differ in this flag are rows of their own in report.py's table."""
        return self.kind in ("method", "ending") if self.tells_apart is None else self.tells_apart

    @property
    def words(self) -> list[str]:
        """What is typed for the flag: --NAME, and --no_NAME for a switch that has an opposite."""
        return [f"--{self.name}", *([f"--no_{self.name}"] if self.opposite else [])]

    def legal(self) -> list[str]:
        """The values that may be typed; empty where every value of the type may."""
        return list(self.choices() if callable(self.choices) else self.choices)

    def add_to(self, group) -> argparse.Action:
        """Add the flag to a group of an argparse parser; returns argparse's action for --NAME."""
        options = {name: value for name in ("type", "action", "nargs", "metavar") if (value := getattr(self, name)) is not None}
        if choices := self.legal():
            options["choices"] = choices
        entries = {}
        if "{" in self.help:
            entries = {"listing": _listing(self.registry), "names": ", ".join(self.registry.entries)}
        action = group.add_argument(f"--{self.name}", default=self.default, help=self.help.format(**entries), **options)
        if self.opposite:
            group.add_argument(
                f"--no_{self.name}", action="store_false", dest=self.name, default=self.default, help=self.opposite
            )
        return action


# parts of many flags: a switch, and what may be typed with --resume, or with the flags that use a model file
SWITCH = {"action": "store_true", "default": False}
ANY = {"on_resume": "any"}
BOTH, EVALUATE = {"goes_with": ("evaluate", "predict")}, {"goes_with": ("evaluate",)}


def number(kind, low, high=math.inf, *, above: bool = False, below: bool = False):
    """An argparse type that reads a finite number of type `kind` from `low` to `high`.

    With `above` the number must be larger than `low`, with `below` smaller than `high`. The type raises
    argparse.ArgumentTypeError, whose message says the range.
    """
    words = f"{'above' if above else 'at least'} {low:g}" + (
        f" and {'below' if below else 'at most'} {high:g}" if high < math.inf else ""
    )

    def read(text: str):
        try:
            value = kind(text)
            inside = (value > low if above else value >= low) and (value < high if below else value <= high)
            inside = inside and math.isfinite(value)
        except (ValueError, OverflowError):
            inside = False
        if not inside:
            raise argparse.ArgumentTypeError(f"'{text}' is not {'a whole' if kind is int else 'a'} number {words}")
        return value

    return read


def frequency(text: str) -> str:
    """An argparse type that reads a number of epochs or iterations, such as 1ep or 4it; it returns the text as it is."""
    if not re.fullmatch(r"[1-9]\d*(ep|it)", text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of epochs or iterations such as 1ep or 4it")
    return text


def _listing(registry: Registry) -> str:
    """The entries of a registry with their options and summaries, as a flag's help tells them."""
    lines = []
    for name, entry in registry.entries.items():
        options = ", ".join(f"{word}={option.default!r}" for word, option in entry.options.items())
        lines.append(f"{name}{f'({options})' if options else ''}: {entry.summary.rstrip('.')}")
    return "; ".join(lines).replace("%", "%%")


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line and end the command as everywhere else, by Refused.

    `actions` maps the name of each flag to argparse's action for it.
    """

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.actions: dict[str, argparse.Action] = {}

    def error(self, message: str):
        raise Refused(" ".join(message.split()))
