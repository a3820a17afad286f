"""The command line: flags in groups, recipes, and every refusal that needs no data. Imports no torch, so it is instant."""

import argparse
import json
import math
import re
from pathlib import Path

from settings.errors import Refused
from settings.registry import (
    CRITERIA,
    LEARNING_RATES,
    NETWORKS,
    PHASES,
    REGULARIZERS,
    SCHEDULES,
    SCOPES,
    Registry,
    parse_call,
    presets,
    suggest,
)
from settings.rules import check_after, check_names, check_pairs, check_use, finds_counts

RAW_SCOPE = "global(normalise='none', floor=0)"
# A recipe replaces defaults; flags that are typed win. It sets the method, never the engine.
RECIPES = {
    # what benchmarks/LOG.md found best, on ResNet-20 in short runs
    "best": {"prune_type": "structured", "prune_schedule": "cubic", "lr_schedule": "cosine", "weight_decay": 5e-4},
    # the description taken literally, with a regulariser that works
    "paper": {
        "prune_type": "structured",
        "prune_rate": 0.6,
        "prune_scope": RAW_SCOPE,
        "prune_gate": "weight",
        "prune_until": 1.0,
        "lr_schedule": "constant",
        "reg": "reg_cov",
        "odecay": 0.7,
    },
    # what the published code did; its regulariser was the constant 0
    "ksc2020": {
        "layers": 56,
        "batch_size": 256,
        "augment": "crop",
        "normalise": "half",
        "val_size": 0.0,
        "seed": 777,
        "prune_type": "structured",
        "prune_rate": 0.6,
        "prune_imp": "L1(reduce='mean')",
        "prune_scope": "global(normalise='none', floor=0, threshold='published')",
        "prune_gate": "weight",
        "prune_freq": "4it",
        "prune_until": 226 / 300,
        "lr_schedule": "constant",
        "reg": "none",
    },
}
# what the plain command does otherwise than the paper's description, and the flag that undoes it
CURES = {
    "reg": ("none", "the regulariser is live (the published one was the constant 0)"),
    "prune_gate": ("weight", "the mask gates a unit's output, behind batch norm"),
    "prune_scope": (RAW_SCOPE, "scores are comparable across layers, and every layer keeps a filter"),
    "lr_schedule": ("constant", "the learning rate drops at 50 % and 75 % of the run"),
    "prune_until": (1.0, "masks are fixed from this fraction of the run on"),
}
# what is done with the network after the last mask; may be asked for later, with --resume
AFTER_FLAGS = ("compact", "recalibrate", "finetune_epochs", "finetune_lr", "export")
# flags that change where and how fast, not what is computed
ENGINE_FLAGS = (
    "recipe",
    "resume",
    "quiet",
    "tensorboard",
    "dry_run",
    "out_dir",
    "data_dir",
    "device",
    "amp",
    "threads",
    "compile",
    "deterministic",
    "evaluate",
    "predict",
)
# what may be typed with --resume although the run began otherwise; --epochs may also grow
MAY_CHANGE = ("resume", "device", "threads", "compile", "quiet", "tensorboard", "data_dir", *AFTER_FLAGS)


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors and the nearest flag for a misspelt one."""

    def error(self, message: str):
        raise Refused(" ".join(message.split()))


class _Unset:
    """Stands for a flag that was not typed."""


def _number(kind, low, high=math.inf, *, above: bool = False, below: bool = False):
    """An argparse type: a finite number in a range, `above` / `below` leaving out the end itself."""
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


def _frequency(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*(ep|it)", text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of epochs or iterations such as 1ep or 4it")
    return text


def _listing(registry: Registry) -> str:
    lines = []
    for name, entry in registry.entries.items():
        options = ", ".join(f"{word}={option.default!r}" for word, option in entry.options.items())
        lines.append(f"{name}{f'({options})' if options else ''}: {entry.summary.rstrip('.')}")
    return "; ".join(lines).replace("%", "%%")


def _add_experiment(parser) -> None:
    group = parser.add_argument_group("experiment")
    group.add_argument("--recipe", choices=sorted(RECIPES), help=(
        "defaults of a published setting, or the best one found here; typed flags win"))  # fmt: skip
    group.add_argument("--procedure", default="once", help="the plan of stages (default once)")
    group.add_argument("--seed", type=_number(int, 0, 2**31), default=0, help="of weights, order and crops (default 0)")
    group.add_argument("--out_dir", help="folder for config.json and metrics.jsonl (default: numbered, below result/)")
    group.add_argument("--resume", metavar="PATH", help="go on with the run in this folder, or from this checkpoint in it")
    group.add_argument("--tensorboard", action="store_true", help="also write the scalars as TensorBoard events")
    group.add_argument("--quiet", action="store_true", help="no bar and no notes on stderr")
    group.add_argument("--dry_run", action="store_true", help="two batches of everything, then stop; writes no file")


def _add_model_and_data(parser) -> None:
    group = parser.add_argument_group("network and data")
    group.add_argument("--layers", type=int, default=50, help="ResNet depth: 20 32 44 56 110, 18 34 50 101 152 (default 50)")
    group.add_argument("--arch", help=f"a network by name: {', '.join(NETWORKS.entries)}")
    group.add_argument("--scratch", metavar="MODEL", help=(
        "the smaller network of this model.pt, trained anew from fresh weights: the control of pruning"))  # fmt: skip
    group.add_argument("--init", metavar="PATH", help=(
        "weights of a trained network to begin with: a run's folder, a checkpoint, a model.pt of a whole network"))  # fmt: skip
    group.add_argument("--shortcut", choices=("projection", "pad"), help="of ResNet-20 to 110 (default projection)")
    group.add_argument("--dataset", choices=("cifar10", "cifar100", "digits", "folder"), default="cifar10", help=(
        "digits is inside scikit-learn and needs no download; folder reads DIR/train/CLASS/IMAGE and DIR/test "
        "(default cifar10)"))  # fmt: skip
    group.add_argument("--data_dir", default="data", help="where the data is, or is downloaded to (default data)")
    group.add_argument("--image_size", type=_number(int, 8, 1024), default=32, help="pixels, for folder (default 32)")
    group.add_argument("--channels", type=int, choices=(1, 3), default=3, help=(
        "of the images of --dataset folder: 1 reads them in grey (default 3)"))  # fmt: skip
    group.add_argument("--val_size", type=_number(float, 0, 1, below=True), default=0.1, help=(
        "fraction of the training set held out for every choice; 0 validates on the test set, as the authors did "
        "(default 0.1)"))  # fmt: skip
    group.add_argument("--augment", choices=("crop_flip", "crop", "none"), help="default crop_flip, for digits crop")
    group.add_argument("--normalise", choices=("dataset", "half"), default="dataset", help=(
        "by the training set's channel mean and deviation, or all by 0.5 (default dataset)"))  # fmt: skip


def _add_pruning(parser) -> None:
    group = parser.add_argument_group("pruning", "options go in the name: \"L1(reduce='mean')\"")
    group.add_argument("--prune_type", choices=("none", "unstructured", "structured"), default="none", help=(
        "what is cut: single weights, or whole filters (default none)"))  # fmt: skip
    group.add_argument("--prune_rate", type=_number(float, 0, 1, below=True), default=0.6, help="fraction removed (default 0.6)")
    group.add_argument("--prune_imp", default="L1", help=f"by what measure. {_listing(CRITERIA)} (default L1)")
    group.add_argument("--prune_scope", default="global", help=f"compared with whom. {_listing(SCOPES)} (default global)")
    group.add_argument("--prune_phase", default="dynamic", help=f"when. {_listing(PHASES)} (default dynamic)")
    group.add_argument("--rounds", type=_number(int, 1, 1000), help=(
        "so many times cut a part and train on: short for --prune_phase \"iterative(rounds=N)\""))  # fmt: skip
    group.add_argument("--preset", choices=sorted(presets()), help=(
        "a published number of filters for each layer, and the network it is for"))  # fmt: skip
    group.add_argument("--prune_schedule", default="constant", help=(
        f"how the rate grows, if dynamic or iterative. {_listing(SCHEDULES)} (default constant, iterative: linear)"))  # fmt: skip
    group.add_argument("--prune_freq", type=_frequency, default="1ep", help="epochs or iterations between masks (default 1ep)")
    group.add_argument("--prune_until", type=_number(float, 0, 1, above=True), default=0.75, help=(
        "fraction of the run after which masks are fixed; of phase after, when it cuts (default 0.75)"))  # fmt: skip
    group.add_argument("--prune_gate", choices=("output", "weight"), default="output", help=(
        "where a filter mask acts: a unit's output, or as published the weight before batch norm (default output)"))  # fmt: skip
    group.add_argument("--score_batches", type=_number(int, 1), default=4, help=(
        "training batches that criteria which read images measure on (default 4)"))  # fmt: skip


def _add_amount(parser) -> None:
    group = parser.add_argument_group("how much is left", "instead of --prune_rate, for structured pruning")
    fraction = _number(float, 0, 1, above=True, below=True)
    group.add_argument("--target_macs", type=fraction, metavar="LEFT", help="fraction of the MACs that removal may leave")
    group.add_argument("--target_params", type=fraction, metavar="LEFT", help="fraction of the parameters that it may leave")
    group.add_argument("--round_to", type=_number(int, 1, 1024), default=1, help=(
        "a multiple that each layer's filters are rounded up to (default 1)"))  # fmt: skip
    group.add_argument("--residual", choices=("free", "grouped"), default="free", help=(
        "free: any filter may go; grouped: those that write one channel of a residual stream go together, so that it "
        "leaves the stream (default free)"))  # fmt: skip


def _add_after(parser) -> None:
    group = parser.add_argument_group("and then", "also for a run that has ended: --resume DIR --compact")
    group.add_argument("--compact", action="store_true", help=(
        "take the pruned filters out: a smaller network with the same outputs, checked, timed, saved as model.pt"))  # fmt: skip
    group.add_argument("--recalibrate", type=_number(int, 0), default=0, metavar="BATCHES", help=(
        "measure batch norm's statistics anew on so many training batches after the last mask (default 0)"))  # fmt: skip
    group.add_argument("--finetune_epochs", type=_number(int, 0), default=0, help="epochs after --compact (default 0)")
    group.add_argument("--finetune_lr", type=_number(float, 0, above=True), help="its learning rate (default 0.01 x --lr)")
    group.add_argument("--export", nargs="+", metavar="FILE", help="write .onnx (checked by onnxruntime) or .pt2 files")
    group.add_argument("--evaluate", metavar="MODEL", help="test a model.pt, on its own data set or on --dataset")
    group.add_argument("--predict", nargs="+", metavar=("MODEL", "IMAGE"), help="classes and probabilities of image files")


def _add_training(parser) -> None:
    group = parser.add_argument_group("regulariser")
    group.add_argument("--reg", default="none", help=f"none, or: {_listing(REGULARIZERS)} (default none)")
    group.add_argument("--odecay", type=_number(float, 0), help="alpha, its weight in the loss (default 0.7, for reg_ortho 0.01)")
    group = parser.add_argument_group("optimisation")
    group.add_argument("--epochs", type=_number(int, 1), default=300, help="default 300")
    group.add_argument("--batch_size", type=_number(int, 2), default=128, help="images a step (default 128)")
    group.add_argument("--optimizer", default="sgd", help="default sgd")
    group.add_argument("--lr", type=_number(float, 0, above=True), default=0.2, help="learning rate (default 0.2)")
    group.add_argument("--momentum", type=_number(float, 0, 1, below=True), default=0.9, help="default 0.9")
    group.add_argument("--weight_decay", type=_number(float, 0), default=1e-4, help="default 1e-4")
    group.add_argument("--lr_schedule", default="step", help=f"{_listing(LEARNING_RATES)} (default step)")
    group.add_argument(
        "--warmup_epochs", type=_number(float, 0), default=0.0, help="linear rise of the learning rate (default 0)"
    )


def _add_engine(parser) -> None:
    group = parser.add_argument_group("engine")
    group.add_argument("--device", choices=("cpu", "cuda", "mps"), help="default: the best there is")
    group.add_argument("--amp", choices=("bfloat16", "off"), help="default: bfloat16 where the device is faster with it")
    group.add_argument("--compile", action="store_true", default=None, help=(
        "capture the step by torch.compile, on CUDA with CUDA graphs; the start takes longer (default: on CUDA)"))  # fmt: skip
    group.add_argument("--no_compile", action="store_false", dest="compile", default=None, help="run each operation by itself")
    group.add_argument("--threads", type=_number(int, 1, 1024), help="CPU threads (default: torch's choice)")
    group.add_argument("--deterministic", action="store_true", help="same command, same numbers; slower on CUDA")


def build_parser() -> argparse.ArgumentParser:
    """The parser alone: its defaults are those of the plain command."""
    parser = _Parser(
        prog="modeling.py",
        allow_abbrev=False,
        description="Trains and prunes a convolutional network. Epoch lines and the summary go to stdout, the rest to stderr.",
    )
    for add in (_add_experiment, _add_model_and_data, _add_pruning, _add_amount, _add_after, _add_training, _add_engine):
        add(parser)
    return parser


# the sections of the settings, and the flags of each
SECTIONS = {
    "run": ("recipe", "procedure", "seed", "out_dir", "resume", "tensorboard", "quiet", "dry_run"),
    "network": ("layers", "arch", "scratch", "init", "shortcut"),
    "data": ("dataset", "data_dir", "image_size", "channels", "val_size", "augment", "normalise"),
    "pruning": (
        *("prune_type", "prune_rate", "prune_imp", "prune_scope", "prune_phase", "rounds", "preset", "prune_schedule"),
        *("prune_freq", "prune_until", "prune_gate", "score_batches", "target_macs", "target_params", "round_to", "residual"),
    ),
    "training": (
        *("reg", "odecay", "epochs", "batch_size", "lr", "momentum", "weight_decay", "optimizer", "lr_schedule", "warmup_epochs"),
    ),
    "ending": ("compact", "recalibrate", "finetune_epochs", "finetune_lr", "export"),
    "use": ("evaluate", "predict"),
    "engine": ("device", "amp", "compile", "threads", "deterministic"),
}


class Section:
    """The values of some flags, by name. They are read, never assigned."""

    def __init__(self, values: dict):
        self.__dict__.update(values)

    def __setattr__(self, name: str, value) -> None:
        raise AttributeError(f"settings are resolved once: {name} cannot be assigned")

    def __repr__(self) -> str:
        return f"Section({self.__dict__})"


class Settings(Section):
    """Every flag's value, resolved once and frozen, in sections such as `settings.data.val_size`.

    `typed` holds what was typed, by flag; `flat` holds all values by flag, as config.json keeps them.
    """

    def __init__(self, values: dict, typed: dict):
        sections = {
            section: Section({name: values[name] for name in names if name in values}) for section, names in SECTIONS.items()
        }
        super().__init__({**sections, "flat": dict(values), "typed": dict(typed)})

    def __getattr__(self, name: str):
        try:
            return self.__dict__["flat"][name]
        except KeyError:
            raise AttributeError(f"there is no setting '{name}'") from None

    def replace(self, **changes) -> "Settings":
        """The same settings but for these values, named by flag."""
        if unknown := changes.keys() - self.flat.keys():
            raise AttributeError(f"there is no setting '{min(unknown)}'")
        return Settings({**self.flat, **changes}, self.typed)


def parse(argv: list[str]) -> Settings:
    """Resolved settings: defaults, then the recipe's, then what was typed, which `settings.typed` holds too.

    Refused if they make no sense.
    """
    parser = build_parser()
    flags = {action.dest: action for action in parser._actions if action.dest != "help"}
    typed, unknown = parser.parse_known_args(argv, argparse.Namespace(**dict.fromkeys(flags, _Unset)))
    if unknown:
        known = [option for action in flags.values() for option in action.option_strings]
        word = unknown[0].split("=")[0]
        raise Refused(f"unknown argument '{word}'" + (f": {suggest(word, known)}" if word.startswith("--") else ""))
    typed = {name: value for name, value in vars(typed).items() if value is not _Unset}
    defaults = {name: action.default for name, action in flags.items()}
    settings = argparse.Namespace(**defaults | RECIPES.get(typed.get("recipe"), {}) | _of_preset(typed) | typed)
    settings.typed = typed
    try:
        if "evaluate" in typed or "predict" in typed:
            check_use(settings, typed)
            return _frozen(settings)
        if "resume" in typed:
            settings = _resumed(Path(typed["resume"]), typed, defaults)
        else:
            check_names(settings)
            check_pairs(settings, typed)
        check_after(settings, typed)
    except ValueError as error:
        raise Refused(str(error)) from None
    if "resume" not in typed:
        _resolve(settings, typed)
    settings.finetune_lr = settings.finetune_lr or 0.01 * settings.lr
    return _frozen(settings)


def _frozen(settings: argparse.Namespace) -> Settings:
    values = vars(settings)
    return Settings({name: value for name, value in values.items() if name != "typed"}, values["typed"])


def _of_preset(typed: dict) -> dict:
    """The settings that --preset stands for; its network, where none was typed."""
    if "preset" not in typed:
        return {}
    chosen = presets()[typed["preset"]]
    found = {"prune_type": "structured", "prune_rate": chosen["rate"], "prune_scope": f"preset(name={typed['preset']!r})"}
    return found | ({} if {"arch", "layers"} & typed.keys() else {"arch": chosen["arch"]})


def _resumed(path: Path, typed: dict, defaults: dict) -> argparse.Namespace:
    """The settings of an earlier run. Refused if there is none, or if what was typed contradicts it."""
    folder = path if path.is_dir() else path.parent
    try:
        saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))["settings"]
        whole = saved.keys() >= {"arch", "typed"} and isinstance(saved["epochs"], int)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise Refused(f"--resume: no run in '{folder}'")
    for name, value in typed.items():
        later = name == "epochs" and value >= saved["epochs"]
        if name not in MAY_CHANGE and not later and value != saved.get(name):
            raise Refused(f"--{name} {value} contradicts the run in '{folder}', which has {saved.get(name)}")
    settings = argparse.Namespace(**defaults | saved | typed)
    settings.typed, settings.out_dir = saved["typed"], None
    return settings


def _resolve_pruning(settings, typed: dict) -> None:
    """What one flag of pruning says about the others."""
    if settings.rounds:
        settings.prune_phase = f"iterative(rounds={settings.rounds})"
    if "prune_schedule" not in typed and parse_call(settings.prune_phase)[0] == "iterative":
        settings.prune_schedule = "linear"
    said = "prune_scope" in typed or "prune_scope" in RECIPES.get(settings.recipe, {}) or settings.preset
    if not said and (own := CRITERIA.constants(settings.prune_imp).get("SCOPE")):
        settings.prune_scope = own
    if finds_counts(settings.prune_imp):
        settings.prune_rate = 0.0
    if settings.init and "prune_until" not in typed and parse_call(settings.prune_phase)[0] == "after":
        settings.prune_until = 0.0  # it has been trained


def _resolve(settings, typed: dict) -> None:
    """Fill in what depends on other flags. Refused for a depth or shortcut that does not exist."""
    _resolve_pruning(settings, typed)
    if settings.arch is None:
        settings.arch = f"resnet{settings.layers}"
        if settings.arch not in NETWORKS.entries:
            depths = sorted(int(name[6:]) for name in NETWORKS.entries if re.fullmatch(r"resnet\d+", name))
            raise Refused(f"no ResNet has {settings.layers} layers here: choose from {', '.join(map(str, depths))}")
    if settings.odecay is None:
        name = parse_call(settings.reg)[0]
        settings.odecay = 0.0 if name == "none" else REGULARIZERS.constants(settings.reg)["ALPHA"].get(name, 1.0)
    if settings.shortcut is not None:
        name, options = parse_call(settings.arch)
        if "shortcut" not in NETWORKS.entries[name].options or "shortcut" in options:
            raise Refused(f"--shortcut has no effect on {settings.arch}: it is for ResNet-20, 32, 44, 56 and 110")
        settings.arch = f"{name}({', '.join(f'{k}={v!r}' for k, v in {**options, 'shortcut': settings.shortcut}.items())})"
    target = settings.target_macs or settings.target_params
    if target is not None:
        settings.prune_rate = round(1 - target, 12)
    if settings.scratch:
        settings.procedure = f"scratch(model={settings.scratch!r})"


def departures(settings) -> list[str]:
    """Lines that say what is done otherwise than the paper describes, each with the flag that undoes it."""
    lines = []
    for name, (published, words) in CURES.items():
        value = getattr(settings, name)
        if name == "prune_scope":
            scope, options = parse_call(value)
            same = scope == "global" and options.get("normalise") == "none" and options.get("floor") == 0
        else:
            same = value == published
        no_matter = name.startswith("prune") and settings.prune_type != "structured"
        no_matter |= name == "prune_until" and settings.prune_phase != "dynamic"
        if not (same or no_matter):
            lines.append(f"{words} ({name} {value}; undo: --{name} {quote(published)})")
    return lines


def method(settings) -> dict:
    """The settings that say what is computed, but for the number of epochs, which may grow."""
    return {name: value for name, value in settings.flat.items() if name not in (*ENGINE_FLAGS, *AFTER_FLAGS, "epochs")}


def typed_over(settings) -> list[str]:
    """The typed flags that say something about the method, for a run by a recipe."""
    return sorted(f"--{name}" for name in settings.typed if name not in (*ENGINE_FLAGS, *AFTER_FLAGS))


def quote(value) -> str:
    """A value as it is typed in a shell."""
    return f'"{value}"' if re.search(r"[^\w.]", str(value)) else str(value)
