"""The multi-layer procedure makes weights sparse, takes out the filters that have become superfluous, and trains what is left."""

from dataclasses import replace
from typing import Annotated

from settings.arguments import Settings
from settings.calls import call_text
from settings.errors import Refused
from settings.registry import REGULARIZERS, parse_call
from training.stages import Stage


def multilayer(
    settings: Settings,
    *,
    rounds: Annotated[int, "at least 1", "at most 1000", "unless phases"] = 3,
    phases: Annotated[int, "at most 1000"] = 0,
    sparse: Annotated[float, "above 0", "below 1"] = 0.5,
) -> Annotated[list[Stage], "cuts", "removes", "prune_imp: zero_fraction(counts='multilayer')", "prune_gate: output", "reg: l1"]:
    """In rounds train with --reg l1, take out filters of few large weights, train without it (Singh et al., 2019).

    arXiv 1811.08342: sparsity induction; one threshold; Algorithm 1; removal from the weights that were not thresholded,
    with the outputs of the masked network; retraining. --epochs is divided evenly between the rounds, and the fraction
    `sparse` of a round is with the penalty. Each stage goes through the whole learning-rate schedule.

    With `phases` each round is about one of so many sets of consecutive layers, the first ones first, as the paper prunes SSD
    in four: a layer behind a set loses inputs with it, and its own filters in the next phase; see `Network.parts`. Raises
    Refused where a stage would have no epoch.
    """
    training, stages, number = settings.training, [], phases or rounds
    for index in range(number):
        epochs = training.epochs * (index + 1) // number - training.epochs * index // number
        penalised = int(sparse * epochs + 1e-9)
        word = "phase" if phases else "round"
        if not 0 < penalised < epochs:
            raise Refused(f"--procedure multilayer: {training.epochs} epochs leave none for a stage of its {number} {word}s")
        part = {"part": (index + 1, phases)} if phases else {}
        name, enter = f"{word} {index + 1}", (call_text("select", {"held_out": True, **part}), "remove")
        stages += [
            Stage(f"{name}, sparsity", penalised, training.lr, masks_stay=True, reg=_of_part(training, part)),
            Stage(f"{name}, retraining", epochs - penalised, training.lr, enter, fixed=("epochs",), masks_stay=True, reg="none"),
        ]
    return [replace(stages[0], warmup_epochs=training.warmup_epochs), *stages[1:]]


def _of_part(training, part: dict) -> str:
    """Return --reg for a part of the network, weighted by --odecay; of the whole where it knows no parts."""
    if not part or "part" not in REGULARIZERS.entry(training.reg).options:
        return training.reg
    name, options = parse_call(training.reg)
    return call_text(name, {**options, "weight": training.odecay, **part})
