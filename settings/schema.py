"""This file says what plain values a file may hold: a schema allows some values, and the first one that it forbids is named.

A schema is one of

- `Is(words, test)`: values that pass the test, such as `COUNT`, `TEXT`, or those that `number` makes
- `Maybe(schema)`: None, or what the schema allows
- `ListOf(schema)`: lists and tuples whose items it allows
- `DictOf(schema)`: dicts with texts as keys, whose values it allows
- `All(schemas)`: what each of them allows
- `Record(required, optional)`: dicts with these keys, a schema for each; `others` is that of all others, any plain values
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

DEEPEST = 24  # containers in containers; records have at most eight


class Unfit(ValueError):
    """A schema forbids a value. The message is one line: where it stands, what it is, and what is wanted."""


@dataclass(frozen=True)
class Is:
    words: str
    test: Callable[[object], bool]


@dataclass(frozen=True)
class Maybe:
    schema: "Schema"


@dataclass(frozen=True)
class ListOf:
    schema: "Schema"
    least: int = 0


@dataclass(frozen=True)
class DictOf:
    schema: "Schema"
    least: int = 0


@dataclass(frozen=True)
class Record:
    required: dict = field(default_factory=dict)
    optional: dict = field(default_factory=dict)
    others: "Schema | None" = None


@dataclass(frozen=True)
class All:
    schemas: "tuple[Schema, ...]"


Schema = Is | Maybe | ListOf | DictOf | Record | All


def check(value, schema: Schema, where: str = "") -> None:
    """Raise Unfit where the schema forbids the value; `where` is the value's place in the file, empty for the whole."""
    if isinstance(schema, Maybe):
        if value is not None:
            check(value, schema.schema, where)
    elif isinstance(schema, All):
        for each in schema.schemas:
            check(value, each, where)
    elif isinstance(schema, Is):
        _expect(schema.test(value), value, where, schema.words)
    elif isinstance(schema, ListOf):
        _expect(isinstance(value, list | tuple) and len(value) >= schema.least, value, where, f"a list{_least(schema)}")
        for position, item in enumerate(value):
            check(item, schema.schema, f"{where}[{position}]")
    else:
        _expect(isinstance(value, dict) and all(isinstance(key, str) for key in value), value, where, "a table by names")
        for key, inner in _parts(value, schema, where).items():
            check(value[key], inner, f"{where}.{shortened(key)}".strip("."))


def _parts(value: dict, schema: DictOf | Record, where: str) -> dict[str, Schema]:
    """Return the schema of each part of a table. Unfit if a part is missing."""
    if isinstance(schema, DictOf):
        _expect(len(value) >= schema.least, value, where, f"a table{_least(schema)}")
        return dict.fromkeys(value, schema.schema)
    if missing := [name for name in schema.required if name not in value]:
        raise Unfit(f"{where or 'it'} has no '{missing[0]}'")
    known = dict.fromkeys(value, schema.others or PLAIN) | schema.optional | schema.required
    return {name: known[name] for name in value}


def allows(value, schema: Schema) -> bool:
    """Return whether the schema allows the value."""
    try:
        check(value, schema)
    except Unfit:
        return False
    return True


def number(low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> Is:
    """A schema of finite numbers from `low` to `high`, or above `low`."""

    def test(value) -> bool:
        # an int may be too large for a float
        finite = type(value) is int or (type(value) is float and math.isfinite(value))
        return finite and (low < value if above else low <= value) and value <= high and abs(value) <= 1e308

    reach = "" if low == -math.inf else f" above {low:g}" if above else f" of at least {low:g}"
    return Is(f"a finite number{reach}{'' if high == math.inf else f', at most {high:g}'}", test)


def whole(low: int, high: int = 2**63 - 1) -> Is:
    """A schema of whole numbers from `low` to `high`."""
    reach = f"of at least {low}" if high == 2**63 - 1 else f"from {low} to {high}"
    return Is(f"a whole number {reach}", lambda value: type(value) is int and low <= value <= high)


def plain(value) -> bool:
    """Return whether a value is made of finite numbers, texts, truth values, None, and lists and tables of them."""
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if type(item) in (list, tuple, dict) and depth < DEEPEST:
            if type(item) is dict and not all(type(key) in (str, int) for key in item):
                return False
            waiting += [(inner, depth + 1) for inner in (item.values() if type(item) is dict else item)]
        elif not (item is None or type(item) in (bool, str) or (type(item) in (int, float) and FINITE.test(item))):
            return False
    return True


def shown(value) -> str:
    """Return a value as a message tells it, at most 60 letters of it."""
    if isinstance(value, list | tuple | dict):
        return f"a {'table' if isinstance(value, dict) else 'list'} of {len(value)}"
    if type(value) is int and abs(value) >= 1e30:
        return "a number of many digits"
    return shortened(repr(value)) if value is None or isinstance(value, str | int | float) else f"a {type(value).__name__}"


def shortened(text: str) -> str:
    """Return the first 60 letters of a text."""
    return text if len(text) <= 60 else f"{text[:60]}..."


def _expect(fits: bool, value, where: str, words: str) -> None:
    if not fits:
        raise Unfit(f"{where or 'it'} is {shown(value)}, not {words}")


def _least(schema: ListOf | DictOf) -> str:
    return f" of at least {schema.least}" if schema.least else ""


ANYTHING = Is("anything", lambda value: True)
FINITE = number()
PLAIN = Is("made of finite numbers, texts, lists and tables", plain)
TEXT = Is("a text", lambda value: type(value) is str and "\0" not in value)
TRUTH = Is("true or false", lambda value: type(value) is bool)
COUNT = whole(0)
PERCENT = number(0, 100)
FRACTION = number(0, 1)
MEASURES = DictOf(PLAIN)
