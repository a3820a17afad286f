"""The command line becomes settings: what was typed is resolved once, checked, and frozen. Imports no torch."""

import argparse
import json
from pathlib import Path

from settings import ending_rules  # noqa: F401  (its rules are among those that are asked)
from settings.effects import finds_counts
from settings.errors import Refused
from settings.flags import DESCRIPTIONS, FLAGS, GROUPS, SECTIONS, defaults, of_kind
from settings.parsing import Parser
from settings.paths import located
from settings.recipes import RECIPES
from settings.registry import CRITERIA, REGULARIZERS, parse_call, presets, suggest
from settings.rules import broken, scratch_model


class Section:
    """The values of some flags, by name. They are read, never assigned."""

    def __init__(self, values: dict):
        self.__dict__.update(values)

    def __setattr__(self, name: str, value) -> None:
        raise AttributeError(f"settings are resolved once: {name} cannot be assigned")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"settings are resolved once: {name} cannot be deleted")

    def __repr__(self) -> str:
        return f"Section({self.__dict__})"


class Settings(Section):
    """Every flag's value, resolved once and frozen, in sections such as `settings.data.val_size`.

    `typed` holds what was typed, by flag; `flat` all values by flag, as config.json keeps them, a new dict each time.
    """

    def __init__(self, values: dict, typed: dict):
        sections = {section: Section({name: values[name] for name in names}) for section, names in SECTIONS.items()}
        super().__init__({**sections, "typed": dict(typed)})

    @property
    def flat(self) -> dict:
        return {name: value for section in SECTIONS for name, value in vars(self.__dict__[section]).items()}

    def replace(self, **changes) -> "Settings":
        """The same settings but for these values, named by flag."""
        if unknown := changes.keys() - FLAGS.keys():
            raise AttributeError(f"there is no setting '{min(unknown)}'")
        return Settings({**self.flat, **changes}, self.typed)


def build_parser() -> argparse.ArgumentParser:
    """The parser alone: its defaults are those of the plain command."""
    parser = Parser(
        prog="modeling.py",
        allow_abbrev=False,
        description="Trains and prunes a convolutional network. Epoch lines and the summary go to stdout, the rest to stderr.",
    )
    for title, flags in GROUPS.items():
        group = parser.add_argument_group(title, DESCRIPTIONS.get(title))
        for flag in flags:
            flag.add_to(group)
    return parser


def parse(argv: list[str]) -> Settings:
    """Resolved settings: defaults, then the recipe's, then what was typed, which `settings.typed` holds too.

    Refused if they make no sense.
    """
    try:
        settings = asked(argv)
    except ValueError as error:  # a file of a registry says what it must not
        raise Refused(str(error)) from None
    if settings.use.evaluate or settings.use.predict:
        _refuse(broken(settings, "use", "ending"))
        return settings
    if settings.run.resume:
        return _resumed(Path(settings.run.resume), settings.typed)
    _refuse(broken(settings, "new", "ending"))
    return resolved(settings)


def asked(argv: list[str]) -> Settings:
    """What was typed, over the recipe's and the other defaults; nothing is checked or resolved. Refused as by `typed_flags`."""
    typed = typed_flags(argv)
    return Settings(defaults() | RECIPES.get(typed.get("recipe"), {}) | _of_preset(typed) | typed, typed)


def typed_flags(argv: list[str]) -> dict:
    """What was typed, by flag. Refused for a flag that does not exist, or a value that it cannot have."""
    parser, nothing = build_parser(), object()
    values, unknown = parser.parse_known_args(argv, argparse.Namespace(**dict.fromkeys(FLAGS, nothing)))
    if unknown:
        known = [option for action in parser._actions if action.dest != "help" for option in action.option_strings]
        word = unknown[0].split("=")[0]
        raise Refused(f"unknown argument '{word}'" + (f": {suggest(word, known)}" if word.startswith("--") else ""))
    return {name: value for name, value in vars(values).items() if value is not nothing}


def _refuse(message: str | None) -> None:
    if message is not None:
        raise Refused(message)


def _of_preset(typed: dict) -> dict:
    """The settings that --preset stands for; its network, where none was typed."""
    if "preset" not in typed:
        return {}
    chosen = presets()[typed["preset"]]
    values = {"prune_type": "structured", "prune_rate": chosen["rate"], "prune_scope": f"preset(name={typed['preset']!r})"}
    return values | ({} if {"arch", "layers"} & typed.keys() else {"arch": chosen["arch"]})


def _resumed(path: Path, typed: dict) -> Settings:
    """The settings of an earlier run. Refused if there is none, or if what was typed contradicts it."""
    folder = path if path.is_dir() else path.parent
    try:
        record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        saved = record["settings"]
        whole = saved.keys() >= {"arch", "typed"} and isinstance(saved["epochs"], int)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise Refused(f"--resume: no run in '{folder}'")
    if saved.get("scratch"):  # a run that began before there were procedures has none in its record
        saved.setdefault("procedure", _scratch(saved["scratch"]))
    saved = defaults() | saved  # nor any other flag that is newer
    for name, value in typed.items():
        allowed = FLAGS[name].on_resume
        more = allowed == "more" and value >= saved[name]
        if allowed != "any" and not more and value != saved[name]:
            raise Refused(f"--{name} {value} contradicts the run in '{folder}', which has {saved[name]}")
    values = saved | typed | {"out_dir": None}
    if "data_dir" not in typed:
        values["data_dir"] = located(saved["data_dir"], folder, record.get("began_in"))
    values["finetune_lr"] = values["finetune_lr"] or 0.01 * values["lr"]
    _refuse(broken(Settings(values, typed), "ending"))
    return Settings(values, saved["typed"])


def _scratch(model: str) -> str:
    """The procedure that --scratch stands for."""
    return f"scratch(model={model!r})"


def resolved(asked: Settings) -> Settings:
    """The same settings with what depends on other flags filled in."""
    training = asked.training
    changes = _resolved_pruning(asked) | {"arch": _network(asked)}
    if model := scratch_model(asked):
        changes |= {"scratch": model, "procedure": _scratch(model)}
    name, options = parse_call(training.reg)
    if name == "none":
        changes["odecay"] = 0.0
    elif "odecay" not in asked.typed and ("weight" in options or training.odecay is None):
        changes["odecay"] = options.get("weight", REGULARIZERS.entries[name].options["weight"].default)
    changes["finetune_lr"] = asked.ending.finetune_lr or 0.01 * training.lr
    return asked.replace(**changes)


def _network(asked: Settings) -> str:
    """The network's name with its options."""
    arch = asked.network.arch or f"resnet{asked.network.layers}"
    if asked.network.shortcut is None:
        return arch
    name, options = parse_call(arch)
    return f"{name}({', '.join(f'{k}={v!r}' for k, v in {**options, 'shortcut': asked.network.shortcut}.items())})"


def _resolved_pruning(asked: Settings) -> dict:
    """What one flag of pruning says about the others."""
    pruning, changes = asked.pruning, {}
    if pruning.rounds:
        changes["prune_phase"] = f"iterative(rounds={pruning.rounds})"
    phase = parse_call(changes.get("prune_phase", pruning.prune_phase))[0]
    if "prune_schedule" not in asked.typed and phase == "iterative":
        changes["prune_schedule"] = "linear"
    scope_is_said = "prune_scope" in asked.typed or "prune_scope" in RECIPES.get(asked.run.recipe, {}) or pruning.preset
    if not scope_is_said and (own := CRITERIA.entry(pruning.prune_imp).traits.get("scope")):
        changes["prune_scope"] = own[0]
    if finds_counts(pruning.prune_imp):
        changes["prune_rate"] = 0.0
    if asked.network.init and "prune_until" not in asked.typed and phase == "after":
        changes["prune_until"] = 0.0  # it has been trained
    if (target := pruning.target_macs or pruning.target_params) is not None:
        changes["prune_rate"] = round(1 - target, 12)
    return changes


def method(settings: Settings) -> dict:
    """The settings that say what is computed, but for the number of epochs, which may grow."""
    values = settings.flat
    return {name: values[name] for name in of_kind("method") if name != "epochs"}


def typed_over(settings: Settings) -> list[str]:
    """The typed flags that say something about the method, for a run by a recipe."""
    return sorted(f"--{name}" for name in settings.typed if FLAGS[name].kind == "method")
