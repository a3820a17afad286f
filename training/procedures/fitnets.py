"""The plan of FitNets guides the first layers of a student by a hint, and then trains all of it."""

from typing import Annotated

from settings.arguments import Settings
from settings.calls import parse_call, parts_of
from settings.errors import Refused
from training.stages import Stage


def fitnets(
    settings: Settings, *, hint: Annotated[float, "above 0", "below 1"] = 0.5
) -> Annotated[list[Stage], "begins by: FitNet"]:
    """Learn a hint of the teacher alone, and then the task with the other losses of --distill (Romero et al., 2015).

    arXiv 1412.6550. In the fraction `hint` of --epochs the loss is the FitNet of --distill, which reaches the layers up to
    its stage; the others are not trained. In the rest it is the terms of the task with the other losses, if there are any: in
    the paper KD with temperature 3. Both stages go through the whole learning-rate schedule,
    each with a fresh optimiser. Raises Refused where one of them
    would have no epoch.
    """
    training, parts = settings.training, parts_of(settings.training.distill)
    guided = int(hint * training.epochs + 1e-9)
    if not 0 < guided < training.epochs:
        raise Refused(f"--procedure fitnets(hint={hint:g}): {training.epochs} epochs leave none for one of its two stages")
    first = [part for part in parts if parse_call(part)[0] == "FitNet"]
    others = " + ".join(part for part in parts if part not in first) or "none"
    warm, rest = {"warmup_epochs": training.warmup_epochs}, training.epochs - guided
    return [
        Stage("hint", guided, training.lr, reg="none", distill=" + ".join(first), task=False, **warm),
        Stage("teaching", rest, training.lr, ("restart",), fixed=("epochs",), distill=others, **warm),
    ]
