"""This file turns a command line into settings: what was typed is resolved once, checked, and frozen. It imports no torch."""

import argparse
from pathlib import Path

from settings import (  # noqa: F401  (their rules are asked)
    ending_rules,
    gate_rules,
    procedure_rules,
    student_rules,
    task_rules,
    training_rules,
)
from settings.calls import call_text
from settings.earlier import folder_of, saved_settings, with_data_of_run
from settings.errors import Refused
from settings.files import fitting, nowhere
from settings.flags import DESCRIPTIONS, FLAGS, GROUPS, SECTIONS, defaults, of_kind
from settings.meaning import (
    finds_counts,
    gate_that_learns,
    of_procedure,
    pixels_of,
    rounds_of,
    says_amounts,
    scope_decides,
    scratch_model,
    task_of,
    teaching_run,
)
from settings.parsing import Parser
from settings.recipes import of_recipe
from settings.registry import CRITERIA, DATASETS, REGULARIZERS, parse_call, presets
from settings.rules import broken
from settings.saved import check_run
from settings.signatures import suggest_flag


class Section:
    """A section holds the values of some flags, by name. They are read, never assigned."""

    def __init__(self, values: dict):
        self.__dict__.update(values)

    def __setattr__(self, name: str, value) -> None:
        raise AttributeError(f"settings are resolved once: {name} cannot be assigned")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"settings are resolved once: {name} cannot be deleted")

    def __repr__(self) -> str:
        return f"Section({self.__dict__})"


class Settings(Section):
    """Settings hold every flag's value, resolved once and frozen, in sections such as `settings.data.val_size`.

    `typed` maps the flags that were typed to their values. `flat` maps every flag to its value, as config.json keeps
    them; each reading of it makes a new dict.
    """

    def __init__(self, values: dict, typed: dict):
        sections = {section: Section({name: values[name] for name in names}) for section, names in SECTIONS.items()}
        super().__init__({**sections, "typed": dict(typed)})

    @property
    def flat(self) -> dict:
        return {name: value for section in SECTIONS for name, value in vars(self.__dict__[section]).items()}

    def replace(self, **changes) -> "Settings":
        """New settings with `changes`, values by flag, in place of these ones' values; AttributeError for an unknown flag."""
        if unknown := changes.keys() - FLAGS.keys():
            raise AttributeError(f"there is no setting '{min(unknown)}'")
        return Settings({**self.flat, **changes}, self.typed)


def build_parser() -> Parser:
    """The parser of modeling.py's flags; its defaults are those of the plain command. `parser.actions` is by flag."""
    parser = Parser(
        prog="modeling.py",
        allow_abbrev=False,
        description="Trains and prunes a convolutional network. Epoch lines and the summary go to stdout, the rest to stderr.",
    )
    for title, flags in GROUPS.items():
        group = parser.add_argument_group(title, DESCRIPTIONS.get(title))
        for flag in flags:
            parser.actions[flag.name] = flag.add_to(group)
    return parser


def parse(argv: list[str]) -> Settings:
    """Turn a command line into resolved settings: the defaults, over them the recipe's, over them what was typed.

    Raises Refused where they make no sense.
    """
    try:
        settings = asked(argv)
    except ValueError as error:  # a signature in a registry's file holds a trait that is unknown or misplaced
        raise Refused(str(error)) from None
    if settings.use.evaluate or settings.use.predict:
        _refuse(broken(settings, "use", "ending"))
        return settings
    if settings.run.resume:
        return _resumed(Path(settings.run.resume), settings.typed)
    _refuse(broken(settings, "new", "ending"))
    return resolved(settings)


def asked(argv: list[str]) -> Settings:
    """The settings that a command line asks for, before they are checked and resolved; raises Refused as `typed_flags` does."""
    typed = typed_flags(argv)
    recipe = of_recipe(typed)
    procedure = (recipe | typed).get("procedure", FLAGS["procedure"].default)
    kind = (recipe | typed).get("prune_type", "none")
    stands_for = of_procedure(procedure, kind) | recipe | _of_preset(typed) | _of_pattern(typed)
    settings = Settings(defaults() | stands_for | typed, typed)
    return with_data_of_run(settings, settings.network.init or scratch_model(settings) or teaching_run(settings))


def typed_flags(argv: list[str]) -> dict:
    """The flags that were typed, with their values. Raises Refused for an unknown flag, or a value that it cannot have."""
    parser, nothing = build_parser(), object()
    values, unknown = parser.parse_known_args(argv, argparse.Namespace(**dict.fromkeys(FLAGS, nothing)))
    if unknown:
        word = unknown[0].split("=")[0]
        known = [word for flag in FLAGS.values() for word in flag.words]
        raise Refused(f"unknown argument '{word}'" + (f": {suggest_flag(word, known)}" if word.startswith("--") else ""))
    for name, value in vars(values).items():
        if value == []:  # what argparse makes of --NAME=--, whose value it takes for the end of the flags
            raise Refused(f"argument --{name}: expected a value, not '--'")
    return {name: value for name, value in vars(values).items() if value is not nothing}


def _refuse(message: str | None) -> None:
    if message is not None:
        raise Refused(message)


def _of_preset(typed: dict) -> dict:
    """The values, by flag, that --preset stands for, with its network where none was typed; empty without --preset."""
    if "preset" not in typed:
        return {}
    chosen = presets()[typed["preset"]]
    values = {"prune_type": "structured", "prune_rate": chosen["rate"], "prune_scope": f"preset(name={typed['preset']!r})"}
    return values | ({} if {"arch", "layers"} & typed.keys() else {"arch": chosen["arch"]})


def _of_pattern(typed: dict) -> dict:
    """The values, by flag, that --pattern stands for: masks that do not move, on single weights. Empty without it."""
    values = {"prune_type": "unstructured", "prune_rate": 0.0, "prune_phase": "init", "prune_schedule": "constant"}
    return (
        values | {name: FLAGS[name].default for name in ("prune_imp", "prune_scope", "prune_gate")} if "pattern" in typed else {}
    )


def _resumed(path: Path, typed: dict) -> Settings:
    """The settings of the earlier run at `path`. Raises Refused where there is none, or where what was typed contradicts it."""
    folder = folder_of(path)
    saved = saved_settings(folder)
    if saved is None:
        raise Refused(f"--resume: no run in {nowhere(path)}")
    if saved.get("scratch"):  # the record of a run that began before there were procedures has none
        saved.setdefault("procedure", _scratch(saved["scratch"]))
    saved = defaults() | saved  # a flag that is newer than the run was at its default
    saved |= {name: flag.default for name, flag in FLAGS.items() if flag.on_resume == "anew"}
    for name, value in typed.items():
        allowed = FLAGS[name].on_resume
        more = allowed == "more" and value >= saved[name] > 0  # what ended without training has no epoch to go on from
        if allowed not in ("any", "anew") and not more and value != saved[name]:
            raise Refused(f"--{name} {value} contradicts the run in '{folder}', which has {saved[name]}")
    values = saved | typed | {"out_dir": None}
    values["finetune_lr"] = values["finetune_lr"] or 0.01 * values["lr"]
    _refuse(broken(Settings(values, typed), "ending"))
    with fitting(folder / "config.json", "record of a run"):
        check_run(Settings(values, saved["typed"]))
    return Settings(values, saved["typed"])


def _scratch(model: str) -> str:
    """The procedure that `--scratch MODEL` stands for."""
    return f"scratch(of={model!r})"


def resolved(asked: Settings) -> Settings:
    """The settings that were asked for, with the values that depend on other flags filled in."""
    training = asked.training
    changes = _resolved_pruning(asked) | {"arch": _network(asked)}
    if not asked.network.init and not scratch_model(asked):  # whose data are those of their run
        changes |= {"image_size": pixels_of(changes["arch"]) or asked.data.image_size}
    if task_of(DATASETS.entry(asked.data.dataset)) == "detection":
        changes["fit"] = "stretch"  # so that no box is cut
    if model := scratch_model(asked):
        changes |= {"scratch": model, "procedure": asked.run.procedure if "procedure" in asked.typed else _scratch(model)}
    name, options = parse_call(training.reg)
    if name == "none":
        changes["odecay"] = 0.0
    elif "odecay" not in asked.typed and ("weight" in options or training.odecay is None):
        changes["odecay"] = options.get("weight", REGULARIZERS.entries[name].options["weight"].default)
    changes["finetune_lr"] = asked.ending.finetune_lr or 0.01 * training.lr
    if training.teacher is not None:
        changes["distill"] = training.distill if "distill" in asked.typed else "KD"
        changes["teacher"] = (training.teacher == "dense" and asked.network.init) or training.teacher
    return asked.replace(**changes)


def _network(asked: Settings) -> str:
    """The name of the network with its options, as --arch takes it."""
    arch = asked.network.arch or f"resnet{asked.network.layers}"
    if asked.network.shortcut is None:
        return arch
    name, options = parse_call(arch)
    return call_text(name, {**options, "shortcut": asked.network.shortcut})


def _resolved_pruning(asked: Settings) -> dict:
    """The values, by flag, that follow from what other flags of pruning say."""
    pruning, changes = asked.pruning, {}
    phase, options = parse_call(pruning.prune_phase)
    if pruning.rounds:
        options = {"rounds": pruning.rounds} | ({"start": options["start"]} if "start" in options else {})  # a recipe's
        phase, changes["prune_phase"] = "iterative", call_text("iterative", options)
    if "prune_schedule" not in of_recipe(asked.typed) | asked.typed and phase == "iterative":
        changes["prune_schedule"] = "linear"
    elif "prune_schedule" not in asked.typed and phase == "init" and rounds_of(asked) > 1:
        changes["prune_schedule"] = "exponential"
    scope_is_said = "prune_scope" in asked.typed or "prune_scope" in of_recipe(asked.typed) or pruning.preset
    if not scope_is_said and (own := CRITERIA.entry(pruning.prune_imp).traits.get("scope")):
        changes["prune_scope"] = own[0]
    if finds_counts(pruning.prune_imp) or scope_decides(asked) or gate_that_learns(asked):
        changes["prune_rate"] = 0.0
    if asked.network.init and "prune_until" not in asked.typed and phase == "after":
        changes["prune_until"] = 0.0  # the network of --init has been trained: it is cut at once
    if (left := says_amounts(asked)) is not None:
        changes["prune_rate"] = round(1 - left, 12)
    if (target := pruning.target_macs or pruning.target_params) is not None:
        changes["prune_rate"] = round(1 - target, 12)
    return changes


def method(settings: Settings) -> dict:
    """The values, by flag, that say what is computed; without the number of epochs, which may grow."""
    values = settings.flat
    return {name: values[name] for name in of_kind("method") if name != "epochs"}


def typed_over(settings: Settings) -> list[str]:
    """The flags that were typed and say something about the method: those that a recipe's run departs by."""
    return sorted(f"--{name}" for name in settings.typed if FLAGS[name].kind == "method")
