"""This file says when a flag about training has no effect; settings/effects.py says what a condition is."""

from settings.meaning import gate_that_learns, task_of
from settings.registry import DATASETS, PROCEDURES


def gates_learn_to_the_end(settings) -> str | None:
    """--keep_best, with a gate that learns what is cut as long as the run lasts."""
    if gate := gate_that_learns(settings):
        return f"has no effect with --prune_gate {gate.name}, of which no epoch but the last has cut what the run cuts"


def compares_trainings(settings) -> str | None:
    """--keep_best, with a procedure that compares trainings with each other, all after their last epoch."""
    procedure = PROCEDURES.entry(settings.run.procedure)
    if "compares trainings" in procedure.traits:
        return f"has no effect with --procedure {procedure.name}, which compares trainings after their last epochs"


def names_no_classes(settings) -> str | None:
    """Flags about the label of a whole image, for a data set of pictures with boxes."""
    if task_of(DATASETS.entry(settings.data.dataset)) == "detection":
        return f"has no effect on {settings.data.dataset}: it is about the one label of a whole image"
