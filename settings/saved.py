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

# the flags that every record has; a later flag that a record does not have was then at its default
FIRST = (
    *("recipe", "seed", "out_dir", "dry_run", "layers", "arch", "shortcut", "dataset", "data_dir", "image_size", "val_size"),
    *("augment", "normalise", "prune_type", "prune_rate", "prune_imp", "prune_scope", "prune_phase", "prune_schedule"),
    *("prune_freq", "prune_until", "prune_gate", "score_batches", "reg", "odecay", "epochs", "batch_size", "lr", "momentum"),
    *("weight_decay", "lr_schedule", "warmup_epochs", "device", "amp", "threads", "deterministic"),
)
STAGE = Record(
    {"name": TEXT, "epochs": COUNT, "lr": number(0)},
    {
        "enter": ListOf(TEXT),
        "progress": ListOf(FRACTION, 2),
        "warmup_epochs": number(0),
        "keep": Maybe(TEXT),
        "fixed": ListOf(TEXT),
        "masks_stay": TRUTH,
        "noise": TRUTH,
        "reg": Maybe(TEXT),
        "remember": ListOf(TEXT),
        "start": TEXT,
        "skip": COUNT,
    },
)
SESSION = Record({"changed": ListOf(TEXT)}, {"command": TEXT, "from_epoch": COUNT})
CONFIG = Record(
    {
        "settings": Record({"epochs": COUNT, "seed": COUNT, "prune_type": TEXT, "prune_rate": FRACTION}),
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


def counted(values: dict) -> dict:
    """Return values by flag as a record keeps them, with their number, so that a later flag is told from one that was lost."""
    values = {name: value for name, value in values.items() if name != "flags"}
    return values | {"flags": len(values)}


def named_as_today(saved: dict) -> dict:
    """Return the values by flag of a record, in which an option that was renamed since has its name of today."""
    procedure = saved.get("procedure")
    renamed = {"procedure": procedure.replace("scratch(model=", "scratch(of=", 1)} if isinstance(procedure, str) else {}
    typed = {"typed": named_as_today(saved["typed"])} if isinstance(saved.get("typed"), dict) else {}
    return saved | renamed | typed


def check_settings(saved: dict, names, where: str = "settings") -> None:
    """Raise Unfit unless the record has those of the flags `names` that it was written with, with values they can have.

    Records from before they were counted have at least the first flags.
    """
    for name in FIRST:
        if name in names and name not in saved:
            raise Unfit(f"{where} has no '{name}'")
    if "flags" in saved and counted(saved)["flags"] != saved["flags"]:
        raise Unfit(f"{where} has {len(saved) - 1} values, not the {shown(saved['flags'])} that were written")
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
