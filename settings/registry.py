"""Named functions: found by reading files, chosen on the command line as `name` or `name(option=value)`.

A registry reads signatures from source, without importing the files, so that a wrong name or option is refused
before torch is loaded. Every public top-level function of its files is an entry; a trailing underscore, which a
Python keyword needs, is not part of the name (`global_` is chosen as `global`).
"""

import ast
import difflib
import importlib
import json
import re
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Option:
    """One keyword-only option of an entry: its default (`required` if it has none) and the values it may take."""

    default: object = None
    required: bool = False
    choices: tuple = ()


@dataclass(frozen=True)
class Entry:
    """A function that can be named: where it is, the first line of its docstring, its options."""

    name: str
    module: str
    function: str
    summary: str
    options: dict = field(default_factory=dict)
    constants: dict = field(default_factory=dict)


def suggest(word: str, known) -> str:
    """The tail of an error message: the nearest known word, or all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5) or [k for k in known if k.lower() == word.lower()]
    return f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(known)}"


def parse_call(text: str) -> tuple[str, dict]:
    """Split `name` or `name(option=literal, ...)`; ValueError where it is neither."""
    match = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", text, re.DOTALL)
    try:
        # the name is checked by the registry; it may be a Python keyword
        call = ast.parse(f"f({match[2] or ''})", mode="eval").body
        names = [keyword.arg for keyword in call.keywords]
        if not isinstance(call.func, ast.Name) or call.args or None in names or len({*names}) < len(names):
            raise ValueError
        return match[1], {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, AttributeError, TypeError, RecursionError, MemoryError):
        raise ValueError(f"cannot read '{text}': write name or name(option=value, ...) with plain values") from None


def _literal(node: ast.expr):
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _choices(annotation: ast.expr | None) -> tuple:
    """The values of a `Literal[...]` annotation."""
    if not (isinstance(annotation, ast.Subscript) and getattr(annotation.value, "id", "") == "Literal"):
        return ()
    values = ast.literal_eval(annotation.slice)
    return values if isinstance(values, tuple) else (values,)


def _entry(node: ast.FunctionDef, module: str, constants: dict) -> Entry:
    pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    options = {
        argument.arg: Option(None if default is None else _literal(default), default is None, _choices(argument.annotation))
        for argument, default in pairs
    }
    summary = (ast.get_docstring(node) or "").split("\n")[0]
    return Entry(node.name.removesuffix("_"), module, node.name, summary, options, constants)


class Registry:
    """The public functions of some files, by name.

    `kind` is the word used in messages; `pattern` is a glob below the repository's root; files in `leave_out` hold
    no entries. ValueError if two files define the same name.
    """

    def __init__(self, kind: str, pattern: str, leave_out: tuple = ("__init__.py",), root: Path = ROOT, classes: bool = False):
        self.classes = classes
        self.kind, self.pattern, self.leave_out, self.root = kind, pattern, leave_out, root

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Name to entry, read from source once."""
        found = {}
        for path in sorted(self.root.glob(self.pattern)):
            if path.name in self.leave_out:
                continue
            tree = ast.parse(path.read_text(encoding="utf-8"))
            module = ".".join(path.relative_to(self.root).with_suffix("").parts)
            constants = {
                node.targets[0].id: _literal(node.value)
                for node in tree.body
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            }
            for node in tree.body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    entry = Entry(node.name.lower(), module, node.name, (ast.get_docstring(node) or "").split("\n")[0])
                elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and not self.classes:
                    entry = _entry(node, module, constants)
                else:
                    continue
                if entry.name in found:
                    raise ValueError(f"two files define {self.kind} '{entry.name}': {found[entry.name].module}, {module}")
                found[entry.name] = entry
        return found

    def check(self, text: str) -> tuple[str, dict]:
        """Name and options of a choice; ValueError with the nearest legal word if there is no such thing."""
        name, options = parse_call(text)
        if name not in self.entries:
            raise ValueError(f"unknown {self.kind} '{name}': {suggest(name, self.entries)}")
        known = self.entries[name].options
        for option, value in options.items():
            if option not in known:
                legal = suggest(option, known) if known else "it has none"
                raise ValueError(f"{self.kind} '{name}' has no option '{option}': {legal}")
            _check_value(f"option '{option}' of {self.kind} '{name}'", known[option], value)
        missing = [option for option, declared in known.items() if declared.required and option not in options]
        if missing:
            raise ValueError(f"{self.kind} '{name}' needs a value for '{missing[0]}'")
        return name, options

    def constants(self, text: str) -> dict:
        """The plain module-level constants beside the chosen function."""
        return self.entries[self.check(text)[0]].constants

    def get(self, text: str):
        """The chosen function with its options bound; `__name__` is the name that was chosen."""
        name, options = self.check(text)
        entry = self.entries[name]
        if self.classes:
            return getattr(importlib.import_module(entry.module), entry.function)
        function = partial(getattr(importlib.import_module(entry.module), entry.function), **options)
        function.__name__ = name
        return function


def _check_value(what: str, option: Option, value) -> None:
    """ValueError unless the value is one of the option's choices, or of its default's type."""
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
    if expected in (int, float) and not 0 <= value < float("inf"):
        raise ValueError(f"{what} is a number of at least 0, not {value!r}")


NETWORKS = Registry(
    "network", "models/*.py", leave_out=("__init__.py", "files.py", "joint.py", "layers.py", "network.py", "numerics.py")
)
CRITERIA = Registry("criterion", "pruning/criteria/*.py")
SCOPES = Registry("scope", "pruning/scopes.py")
SCHEDULES = Registry("pruning schedule", "pruning/schedules.py")
PHASES = Registry("phase", "pruning/phases.py")
REGULARIZERS = Registry("regulariser", "regularizers.py")
DATASETS = Registry("data set", "tasks/datasets/*.py", classes=True)
TASKS = Registry("task", "tasks/*.py", leave_out=("__init__.py", "images.py", "meters.py", "task.py"), classes=True)
PROCEDURES = Registry("procedure", "training/procedures/*.py")
ACTIONS = Registry("action", "training/actions.py")
OPTIMISERS = Registry("optimiser", "training/optimisers.py")
LEARNING_RATES = Registry("learning-rate schedule", "training/learning_rates.py")


def presets() -> dict:
    """The published counts in pruning/presets.json."""
    return json.loads((ROOT / "pruning" / "presets.json").read_text(encoding="utf-8"))
