"""This file reads from source what the signature of a function or class says: its options, and traits in annotations."""

import ast
import difflib
import math
import operator
import re
import sys
from dataclasses import dataclass, field

COMPARISONS = {"at least": operator.ge, "above": operator.gt, "at most": operator.le, "below": operator.lt}
# what may be said of an option in any registry: the limits of a number, or of each number of a tuple; the value of another
# option without which it has no effect; and the option beside which it has none, unless that is at its default
LIMIT = re.compile(rf"({'|'.join(COMPARISONS)}) (\S+)")
NEEDS, UNLESS = re.compile(r"needs (\w+)=(.+)"), re.compile(r"unless (\w+)")


@dataclass(frozen=True)
class Option:
    """A keyword-only option of an entry: its default (`required` if it has none) and the values that it may take.

    `limits` are pairs of a comparison and a number, such as ("at most", 1.0). It has no effect unless the options in `needs`,
    pairs of a name and a value, have these values, and those named in `unless` are at their defaults.
    """

    default: object = None
    required: bool = False
    choices: tuple = ()
    limits: tuple[tuple[str, float], ...] = ()
    needs: tuple[tuple[str, object], ...] = ()
    unless: tuple[str, ...] = ()

    @property
    def range(self) -> str:
        """The limits in words; a number without a lower one is at least 0."""
        limits = self.limits if any(word in ("at least", "above") for word, _ in self.limits) else (("at least", 0), *self.limits)
        return " and ".join(f"{word} {limit:g}" for word, limit in limits)

    def admits(self, value) -> bool:
        """Whether a number is finite and within the limits; without a lower one it must not be below 0."""
        lowest = -math.inf if any(word in ("at least", "above") for word, _ in self.limits) else 0
        inside = all(COMPARISONS[word](value, limit) for word, limit in self.limits)
        return inside and lowest <= value and abs(value) <= sys.float_info.max


@dataclass(frozen=True)
class Entry:
    """A function or class that can be named: its module, the first line of its docstring, its options and traits.

    `traits` maps each trait to the parameters that carry it, "return" standing for what is returned; a trait with a value,
    written "trait: value", is mapped to that value. `kind` is the registry's, but "proximal" for a function that is
    annotated to return None.
    """

    name: str
    module: str
    function: str
    summary: str
    kind: str
    options: dict[str, Option] = field(default_factory=dict)
    traits: dict[str, tuple[str, ...]] = field(default_factory=dict)


def check_value(what: str, option: Option, value) -> None:
    """Raise ValueError unless `value` is one of the option's choices or, where it has none, of the type of its default."""
    if option.choices:
        if value not in option.choices:
            raise ValueError(f"{what} is one of {', '.join(map(repr, option.choices))}, not {value!r}")
        return
    if option.default is None:
        if option.required and not isinstance(value, str):
            raise ValueError(f"{what} is a name in quotes, not {value!r}")
        return
    expected = type(option.default)
    whole_for_float = expected is float and type(value) is int
    if type(value) is not expected and not whole_for_float:
        raise ValueError(f"{what} is {expected.__name__} like {option.default!r}, not {value!r}")
    of_numbers = expected is tuple and any(type(item) in (int, float) for item in option.default)
    numbers = value if of_numbers else (value,) if expected in (int, float) else ()
    for number in numbers:
        if type(number) not in (int, float):
            raise ValueError(f"{what} holds numbers, and {number!r} has the wrong type")
        if not option.admits(number):
            raise ValueError(f"{what} is a number of {option.range}, not {number!r}")


def check_effect(what: str, option: Option, known: dict[str, Option], chosen: dict) -> None:
    """Raise ValueError if an option that was chosen has no effect beside the others; `chosen` holds values by name."""
    for other, needed in option.needs:
        if chosen.get(other, known[other].default) != needed:
            raise ValueError(f"{what} has no effect without {other}={needed!r}")
    for other in option.unless:
        if chosen.get(other, known[other].default) != known[other].default:
            raise ValueError(f"{what} has no effect beside {other}={chosen[other]!r}")


def suggest(word: str, known) -> str:
    """The end of the message for an unknown word: the known word that is nearest to it, or all known ones."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5) or [k for k in known if k.lower() == word.lower()]
    return f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(known)}"


def suggest_flag(word: str, known) -> str:
    """The end of the message for an unknown flag: the known one that it is nearly, else where all of them are told.

    Nearly is a spelling that agrees to three quarters, or the beginning of a single flag. Flags of other programs that do
    something else are not led to one of ours.
    """
    bare = {flag.removeprefix("--"): flag for flag in known}
    asked = word.removeprefix("--").replace("-", "_").lower()
    near = difflib.get_close_matches(asked, bare, n=1, cutoff=0.75) or [name for name in bare if name.startswith(asked)]
    return f"did you mean '{bare[near[0]]}'?" if asked and len(near) == 1 else "--help lists all of them"


def _literal(node: ast.expr):
    """The plain value that an expression stands for, or None where it is none."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _named(node: ast.expr | None, name: str) -> bool:
    """Whether an annotation is `name[...]`, also by its module, as in `typing.Annotated[...]`."""
    if not isinstance(node, ast.Subscript):
        return False
    return name == (node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", ""))


def _taken_apart(annotation: ast.expr | None) -> tuple[ast.expr | None, list]:
    """The type and the words of `Annotated[type, words...]`; any other annotation is returned as it is, with no words."""
    if not _named(annotation, "Annotated"):
        return annotation, []
    kind, *words = getattr(annotation.slice, "elts", [annotation.slice])
    return kind, [_literal(word) for word in words]


def _choices(annotation: ast.expr | None) -> tuple:
    """The values of a `Literal[...]` annotation; empty for any other one."""
    if not _named(annotation, "Literal"):
        return ()
    values = ast.literal_eval(annotation.slice)
    return values if isinstance(values, tuple) else (values,)


def _signature(node: ast.FunctionDef | ast.ClassDef) -> ast.FunctionDef | None:
    """The function whose signature counts: a function itself, of a class its `__init__`, or None where it has none."""
    if isinstance(node, ast.FunctionDef):
        return node
    return next((part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)


def _options(signature: ast.FunctionDef) -> dict[str, Option]:
    """The keyword-only parameters as options, by name."""
    pairs = zip(signature.args.kwonlyargs, signature.args.kw_defaults, strict=True)
    return {argument.arg: _option(argument.annotation, default) for argument, default in pairs}


def _option(annotation: ast.expr | None, default: ast.expr | None) -> Option:
    """The option that a keyword-only parameter of this annotation and default is."""
    kind, words = _taken_apart(annotation)
    limits = [match.groups() for word in words if isinstance(word, str) and (match := LIMIT.fullmatch(word))]
    needs = [match.groups() for word in words if isinstance(word, str) and (match := NEEDS.fullmatch(word))]
    return Option(
        None if default is None else _literal(default),
        default is None,
        _choices(kind),
        tuple((word, float(number)) for word, number in limits),
        tuple((name, ast.literal_eval(value)) for name, value in needs),
        tuple(match[1] for word in words if isinstance(word, str) and (match := UNLESS.fullmatch(word))),
    )


def _of_any_option(word) -> bool:
    """Whether a word in an annotation is one of those that may be said of an option in any registry."""
    return isinstance(word, str) and any(pattern.fullmatch(word) for pattern in (LIMIT, NEEDS, UNLESS))


def read_entry(
    node: ast.FunctionDef | ast.ClassDef, module: str, kind: str, known: dict[str, tuple[str, ...]], as_written: bool = False
) -> Entry:
    """The entry that the source of a function or class makes, in the file `module`; `as_written` is as in the registry.

    `kind` is the word for it in messages; `known` maps each trait to the parameters where it may stand, or to "class" for
    the annotation of a class's attribute. Raises ValueError for a trait that is unknown, or that stands elsewhere.
    """
    name = _snake(node.name) if isinstance(node, ast.ClassDef) and not as_written else node.name.removesuffix("_")
    summary = (ast.get_docstring(node) or "").split("\n")[0]
    signature = _signature(node)
    options, traits = _options(signature) if signature else {}, {}
    parts = [*signature.args.posonlyargs, *signature.args.args, *signature.args.kwonlyargs] if signature else []
    annotations = [(part.arg, part.annotation) for part in parts]
    annotations += [("return", signature.returns)] if signature else []
    if isinstance(node, ast.ClassDef):
        annotations += [("class", part.annotation) for part in node.body if isinstance(part, ast.AnnAssign)]
    for parameter, annotation in annotations:
        where = f"{module}.{node.name}, {parameter}"
        annotated, words = _taken_apart(annotation)
        if annotated is not None and any(_named(inner, "Annotated") for inner in ast.walk(annotated)):
            raise ValueError(f"{where}: Annotated inside of another type is not read: put it around the whole type")
        for word in words:
            if parameter in options and _of_any_option(word):
                continue
            trait, value = _trait(word, "option" if parameter in options else parameter, kind, known, where)
            traits[trait] = (*traits.get(trait, ()), value or parameter)
    nothing = isinstance(node, ast.FunctionDef) and isinstance(node.returns, ast.Constant) and node.returns.value is None
    return Entry(name, module, node.name, summary, "proximal" if nothing else kind, options, traits)


def _snake(name: str) -> str:
    """The name of a class as it is chosen: OneWord becomes one_word."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _trait(text, parameter: str, kind: str, known: dict[str, tuple[str, ...]], where: str) -> tuple[str, str]:
    """The trait that `text` names and its value, empty if it takes none. ValueError if it is unknown or misplaced."""
    trait, colon, value = text.partition(": ") if isinstance(text, str) else (repr(text), "", "")
    word = trait + colon.strip()
    if word not in known:
        legal = suggest(word, known) if known else "it has none"
        raise ValueError(f"{where}: unknown trait {text!r} of a {kind}: {legal}")
    if parameter not in known[word]:
        raise ValueError(f"{where}: trait {text!r} of a {kind} belongs to {' or '.join(known[word])}")
    return trait, value
