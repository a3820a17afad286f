"""A registry finds functions and classes by name: on the command line they are chosen as `name` or `name(option=value)`.

A registry reads signatures from source, without importing the files, so that a wrong name or option is refused before
torch is loaded. Every public function at the top of its files is an entry; so is every public class that no other class
of its file derives from: OneWord is chosen as `one_word`. A trailing underscore, which a Python keyword needs, is not
part of a name (`global_` is chosen as `global`).

What else the program must know about an entry stands in its signature, in the words of the registry's `traits`:
`context: Annotated[Context, "reads images"]`. A word that is unknown, or that stands at a parameter where it means nothing,
is a ValueError when the files are read. Of an option any registry understands "at least 1", "at most 1", "above 0" and
"below 1", "needs counts='KL'" (without that it has no effect), and "unless threshold" (beside that it has none).
"""

import ast
import importlib
import json
from functools import cached_property, partial
from pathlib import Path

from settings.calls import parse_call, parts_of
from settings.own_files import WithOwnFiles
from settings.signatures import Entry, check_effect, check_value, read_entry, suggest

ROOT = Path(__file__).resolve().parent.parent


class Registry:
    """A registry knows the public functions and classes of some files, by name.

    `kind` is the word used in messages; `pattern` is a glob below the repository's root; the files that `leave_out` names
    hold no entries. `traits` says which words may stand at which parameter: {word: parameters}, "return" for what is returned and
    "option" for any option; a word that ends in a colon is followed by a value. With `as_written` classes keep their names.
    """

    def __init__(
        self,
        kind: str,
        pattern: str,
        leave_out: str = "__init__",
        root: Path = ROOT,
        traits: dict[str, tuple[str, ...]] | None = None,
        as_written: bool = False,
    ):
        self.kind, self.pattern, self.leave_out, self.root, self.words = kind, pattern, leave_out, root, traits or {}
        self.as_written = as_written

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """The entries by name, read from source once; ValueError for a name that two files define, or a wrong trait."""
        entries = {}
        for path in sorted(self.root.glob(self.pattern)):
            if path.stem in self.leave_out.split():
                continue
            module = ".".join(path.relative_to(self.root).with_suffix("").parts)
            body = ast.parse(path.read_text(encoding="utf-8")).body
            nodes = [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
            bases = {getattr(base, "id", "") for node in nodes if isinstance(node, ast.ClassDef) for base in node.bases}
            for node in nodes:
                if node.name.startswith("_") or node.name in bases:
                    continue
                entry = read_entry(node, module, self.kind, self.words, self.as_written)
                if entry.name in entries:
                    raise ValueError(f"two files define {self.kind} '{entry.name}': {entries[entry.name].module}, {module}")
                entries[entry.name] = entry
        return entries

    def check(self, text: str) -> tuple[str, dict]:
        """The name and the options of a choice; ValueError, with the nearest legal word, for a name or option it lacks."""
        name, options = parse_call(text)
        if name not in self.entries:
            raise ValueError(f"unknown {self.kind} '{name}': {suggest(name, self.entries)}")
        known = self.entries[name].options
        for option, value in options.items():
            if option not in known:
                legal = suggest(option, known) if known else "it has none"
                raise ValueError(f"{self.kind} '{name}' has no option '{option}': {legal}")
            check_value(f"option '{option}' of {self.kind} '{name}'", known[option], value)
        for option in options:
            check_effect(f"option '{option}' of {self.kind} '{name}'", known[option], known, options)
        missing = [option for option, declared in known.items() if declared.required and option not in options]
        if missing:
            raise ValueError(f"{self.kind} '{name}' needs a value for '{missing[0]}'")
        return name, options

    def entry(self, text: str) -> Entry:
        """The entry that a choice names; raises ValueError as `check` does."""
        return self.entries[self.check(text)[0]]

    def get(self, text: str, **options):
        """The chosen function or class with its options bound; `__name__` is the name that was chosen.

        `options` are bound too, and win over those in the text. Raises ValueError as `check` does.
        """
        name, typed = self.check(text)
        entry = self.entries[name]
        if unknown := options.keys() - entry.options.keys():
            raise ValueError(f"{self.kind} '{name}' has no option '{min(unknown)}'")
        chosen = getattr(importlib.import_module(entry.module), entry.function)
        if isinstance(chosen, type) and not typed | options:
            return chosen
        function = partial(chosen, **typed | options)
        function.__name__ = name
        return function


class Combined(Registry):
    """A registry of which several entries may be chosen at once, as in `one + other(option=1)`."""

    def check(self, text: str) -> tuple[str, dict]:
        """The name and the options of the first choice; ValueError for any that is wrong, or is made twice."""
        checked = [super(Combined, self).check(part) for part in parts_of(text)]
        names = [name for name, _ in checked]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{self.kind} '{name}' is chosen twice")
        return checked[0]


class Networks(WithOwnFiles, Registry):
    """The networks by name, and those in files of the user's."""


NETWORKS = Networks(
    "network",
    "models/*.py",
    leave_out="__init__ adoption assembling coding factorised files foreign joint layers layouts network numerics operations "
    "parts pooling program seen shapes steps tracing",
    # what it is for, where that is no classification, and the side of the only images that it takes
    traits={"task:": ("return",), "pixels:": ("return",)},
)
CRITERIA = Registry(
    "criterion",
    "pruning/criteria/*.py",
    traits={
        "filters only": ("unit", "units"),
        "unlike filters": ("unit", "units"),  # it compares a layer's filters with each other, which must read the same channels
        "zeros of a ReLU": ("unit", "units"),  # it counts the zeros that a ReLU makes, of which a linear output has none
        "batch norm": ("unit", "units"),  # it compares scales of batch norm, which stands behind every layer that may be cut
        "initial weights": ("unit", "units"),  # it compares with the weights before the first step
        "reads images": ("context",),
        "reads maps": ("context",),
        "more images than filters": ("context",),
        "instead of images": ("option",),  # where this option is typed, no images are read
        "images a class": ("option",),  # unless it is 0, so many of each class are read instead of --score_batches
        "scope:": ("return",),  # the scope that compares the scores, where --prune_scope is not typed
        "magnitude": ("return",),  # of a single weight the score is its absolute value
    },
)
GRANULARITIES = Registry("granularity", "pruning/granularities.py", traits={"whole filters": ("class",)})
GATES = Registry(
    "gate",
    "pruning/gates/*.py",
    leave_out="__init__ learned mask scale",
    # a gate that itself learns what is cut, of which --prune_type, beside weights that stay; an option counted in epochs
    traits={"decides": ("class",), "of:": ("class",), "freezes": ("class",), "epochs": ("option",)},
)
SCOPES = Registry(
    "scope",
    "pruning/scopes.py",
    traits={
        "filters only": ("scores",),
        "single layers": ("scores",),
        "single weights": ("scores",),
        "magnitudes": ("scores",),
        "says how much": ("option",),  # where this option is not 0, the rate does not matter
    },
)
SCHEDULES = Registry("pruning schedule", "pruning/schedules.py")
PHASES = Registry(
    "phase",
    "pruning/phases.py",
    traits={"unused": ("until", "due"), "one cut": ("return",), "what is cut stays cut": ("return",)},
)
PROXIES = Registry("score", "pruning/zero_cost.py")
FACTORISATIONS = Registry("factorisation", "pruning/factorisation.py")
RECONSTRUCTIONS = Registry(
    "reconstruction",
    "pruning/reconstruction/*.py",
    # what is given new weights: the layers that read what is left or, with the first trait, what is left of each layer
    # itself; with the second, layers are cut that alone write their channels, linear ones too, and no images are seen
    traits={"surviving weights": ("survivors",), "hidden layers": ("problem",)},
)
# its options are the flags that it listens to; the trait says which task it is for, where that is no classification
DATASETS = Registry("data set", "tasks/datasets/*.py", traits={"task:": ("class",)})
TASKS = Registry(
    "task",
    "tasks/*.py",
    leave_out="__init__ annotations augmentations average_precision boxed boxes classes downloads images listing memory meters "
    "mixing named pictures statistics streams task unlabelled views",
)
AUGMENTATIONS = Registry(
    "augmentation",
    "tasks/augmentations.py",
    # what it is for, where that is no classification
    traits={"task:": ("return",), "any task": ("return",)},
)
ACTIONS = Registry("action", "training/*actions.py")
PROCEDURES = Registry(
    "procedure",
    "training/procedures/*.py",
    traits={
        "repairs": ("return",),
        "repairs layer by layer": ("return",),
        "cuts": ("return",),  # it itself says when something is cut
        "removes": ("return",),  # it takes out the filters that it cuts
        "amounts": ("return",),  # it itself says how much is cut
        "masks": ("option",),  # the earlier run whose masks are put in force
        # the criterion by which it does so, on the held-out images, its masks and regulariser, where these flags are not typed
        "prune_imp:": ("return",),
        "prune_gate:": ("return",),
        "prune_scope:": ("return",),  # of smaller pieces than filters
        "reg:": ("return",),
        "unlabelled images": ("return",),  # it learns from them too
        "networks": ("option",),  # the networks of its students, one after the other
        "begins by:": ("return",),  # the loss of a teacher by which it trains a whole network at first
        "compares trainings": ("return",),  # it measures several trainings of the network beside each other
        "augment:": ("return",),
    },
)
REGULARIZERS = Registry(
    "regulariser",
    "regularizers.py",
    # it sets filters to exactly 0, which can then be taken out; it trains scales, which are put on the network for it; it is
    # about scales of batch norm
    traits={"zero filters": ("network",), "learned scales": ("network",), "batch norm": ("network",)},
)
DISTILLATIONS = Combined(
    "distillation loss",
    "distillation.py",
    # it compares the maps of stages that both networks have; or the last map, or the embedding; and an option: the terms of
    # the task are multiplied by what it leaves of 1; with the other trait it asks for the true class of each image
    traits={"maps": ("student",), "features": ("student",), "true class": ("student",), "rest is the task's": ("option",)},
    as_written=True,
)
FORMS = Registry("form", "deploy/forms/*.py", leave_out="__init__ form onnx pt2 quiet", traits={"an .onnx file": ("return",)})
OPTIMISERS = Registry("optimiser", "training/optimisers.py", traits={"no momentum": ("return",)})
LEARNING_RATES = Registry("learning-rate schedule", "training/learning_rates.py")


def presets() -> dict:
    """The published numbers of filters by the name of their preset, from pruning/presets.json."""
    return json.loads((ROOT / "pruning" / "presets.json").read_text(encoding="utf-8"))
