"""This file says what a run's record of its settings must hold: the values that a command could have given, and all of them.

A record is in config.json, in a checkpoint, and in a model.pt. Values are checked by the table of flags, as typed ones are.
"""

import argparse

from settings.flags import FLAGS
from settings.rules import broken
from settings.schema import (
    COUNT,
    FRACTION,
    PLAIN,
    TEXT,
    TRUTH,
    DictOf,
    Is,
    ListOf,
    Maybe,
    Record,
    Unfit,
    check,
    number,
    shown,
    whole,
)

# "generation" in a record is that of the table of flags; by it, the flags that came later, which were then at their defaults
GENERATION = 2
# fmt: off
LATER = {
    1: ("procedure", "resume", "tensorboard", "quiet", "scratch", "init", "channels", "fit", "test_size", "class_weights",
        "rounds", "preset", "target_macs", "target_params", "round_to", "residual", "compact", "recalibrate", "finetune_epochs",
        "finetune_lr", "export", "export_input", "evaluate", "predict", "optimizer", "compile"),
    2: (),
}
# fmt: on
STAGE = Record(
    {"name": TEXT, "epochs": COUNT, "lr": number(0)},
    {
        "enter": ListOf(TEXT),
        "progress": ListOf(FRACTION, 2),
        "warmup_epochs": number(0),
        "keep": Maybe(TEXT),
        "fixed": ListOf(TEXT),
    },
)
SESSION = Record({"changed": ListOf(TEXT)}, {"command": TEXT, "from_epoch": COUNT})
CONFIG = Record(
    {
        "settings": Record({"epochs": whole(1), "seed": COUNT, "prune_type": TEXT, "prune_rate": FRACTION}),
    },
    {
        "command": TEXT,
        "filters": DictOf(whole(1)),
        "plan": ListOf(STAGE, 1),
        "metric": TEXT,
        "prunable": COUNT,
        "versions": DictOf(TEXT),
        "device_name": TEXT,
        "threads": whole(1),
        "processes": whole(1),
        "commit": Maybe(TEXT),
        "python": TEXT,
        "began_in": Maybe(TEXT),
        "resumed": ListOf(SESSION),
    },
)


def dated(values: dict) -> dict:
    """Return values by flag as a record keeps them, with the generation of the table of flags."""
    return values | {"generation": GENERATION}


def check_settings(saved: dict, names, where: str = "settings") -> None:
    """Raise Unfit unless the record has all the flags `names`, but for those newer than itself, with values they can have."""
    generation = saved.get("generation", 1)
    if generation not in LATER or type(generation) is not int:
        raise Unfit(f"{where}.generation is {shown(generation)}, which this program does not know")
    for name in names:
        if name not in saved and name not in LATER[generation]:
            raise Unfit(f"{where} has no '{name}'")
    check(saved.get("typed", {}), DictOf(PLAIN), f"{where}.typed")
    for part, values in ((where, saved), (f"{where}.typed", saved.get("typed", {}))):
        for name, value in values.items():
            if name in FLAGS:
                check_value(name, value, f"{part}.{name}")


def check_run(settings) -> None:
    """Raise Unfit where the resolved settings of a run contradict each other."""
    if message := broken(settings, "saved"):
        raise Unfit(message)


def check_value(name: str, value, where: str) -> None:
    """Raise Unfit unless the flag of this name can have the value, by what is typed for it or by what other flags say."""
    flag = FLAGS[name]
    resolved = (flag.default, *flag.resolved)
    if any(type(value) is type(other) and value == other for other in resolved):
        return
    words = f"what --{flag.name} can be"
    if flag.action:
        check(value, TRUTH, where)
    elif flag.nargs:
        check(value, ListOf(TEXT, 1), where)
    elif flag.type is None:
        check(value, TEXT, where)
    else:
        check(value, Is(words, lambda it: type(it) in (int, float, str) and _reads(flag, it)), where)
    if (legal := flag.legal()) and value not in legal:
        raise Unfit(f"{where} is {shown(value)}, not {words}")
    if flag.registry is not None:
        try:
            flag.registry.check(value)
        except ValueError as error:
            raise Unfit(f"{where}: {error}") from None


def _reads(flag, value) -> bool:
    """Return whether the flag's own type reads the value as it is."""
    try:
        return flag.type(str(value)) == value
    except (argparse.ArgumentTypeError, ValueError):
        return False
