"""This file reads the checkpoint of a run: tensors and plain values, of this program's format or an earlier one."""

from pathlib import Path

from runs.records import rows_fit
from runs.schemas import RESULTS
from runs.storage import read_tensors
from settings.files import fitting
from settings.flags import of_kind
from settings.saved import check_settings, named_as_today
from settings.schema import ANYTHING, COUNT, FINITE, TEXT, DictOf, ListOf, Maybe, Record, check, number, whole

FORMAT = 2
TABLE = Record()
FIXED = {"epochs": COUNT, "recalibrate": COUNT, "finetune_lr": number(0, above=True)}
# tensors and shapes are checked against the network that they are for: Network.reshape, Network.take
CHECKPOINT = Record(
    {
        "settings": Record({"arch": TEXT}),
        "model": DictOf(ANYTHING, 1),
        "optimizer": ANYTHING,
        "random": ListOf(ANYTHING, 1),
        "stage": COUNT,
        "fixed": Record(optional=FIXED),
        "shapes": ANYTHING,
        "results": RESULTS,
    },
    {
        "arch": TEXT,
        "began": ANYTHING,
        "programs": DictOf(ANYTHING),  # rebuild
        "format": COUNT,
        "rows": ANYTHING,
        "to_repair": ANYTHING,
        "tickets": Record(optional={"states": DictOf(ANYTHING), "masks": ListOf(ANYTHING), "copies": ListOf(ANYTHING)}),
        "teaching": ANYTHING,  # checked against the teacher and its losses
        "pseudo_labels": ANYTHING,  # Unlabelled.take
        "average": Record({"steps": COUNT, "values": DictOf(ANYTHING, 1)}),
        "best": Record({"epoch": COUNT, "value": FINITE, "model": DictOf(ANYTHING, 1)}),
        "steps": whole(1),
        "data": Maybe(Record(optional={"classes": ListOf(TEXT, 1)})),
        "after": ANYTHING,
        "scratch": ANYTHING,
    },
)
AFTER = Maybe(Record(FIXED | {"shapes": ANYTHING}, {"recalibration": TABLE, "removal": TABLE}))


def load_checkpoint(path: Path) -> dict:
    """The tensors and plain values of a checkpoint. Raises Missing, Damaged and Refused as `read_tensors` does."""
    state = read_tensors(path, "checkpoint", {"rows", "settings", "model", "optimizer", "random"}, FORMAT)
    with fitting(path, "checkpoint"):
        if state["format"] < 2:
            check(state.get("after"), AFTER)
            state = _from_format_1(state)
        check(state, CHECKPOINT)
        state["settings"] = named_as_today(state["settings"])
        check_settings(state["settings"], [name for name in of_kind("method") if name != "epochs"])
        rows_fit(state["rows"])
    return state


def tensors_of(state: dict) -> dict:
    """The tensors of a checkpoint's network, by name: those that its run would be tested with if it ended there.

    That are those of the best epoch (--keep_best), or the average of the last ones (--ema), where the run keeps them.
    """
    if "best" in state:
        return state["best"]["model"]
    return state["model"] | state.get("average", {}).get("values", {})


def shapes_of(state: dict) -> dict | None:
    """The shapes of a checkpoint's network, as Network.reshape takes them: its own or, where the run has not changed them, those
    that it began with; None in an older checkpoint of a whole network."""
    return state["shapes"] or state.get("began")


def arch_of(state: dict) -> str:
    """The name of a checkpoint's network, as --arch takes it: a student may have another one than the run began with."""
    return state.get("arch", state["settings"]["arch"])


def _from_format_1(state: dict) -> dict:
    """A checkpoint of format 1 in today's format: it has no stages, and keeps what followed the last mask in "after"."""
    ending, scratch = state.get("after"), state.get("scratch")
    fixed = {name: ending[name] for name in FIXED} if ending else {}
    results = {name: ending[name] for name in ("recalibration", "removal") if ending and name in ending}
    stage, shapes = (1, ending["shapes"]) if ending else (0, scratch)
    return {**state, "stage": stage, "fixed": fixed, "shapes": shapes, "results": results}
