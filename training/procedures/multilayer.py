"""The multi-layer procedure makes weights sparse, takes out the filters that have become superfluous, and trains what is left."""

from dataclasses import replace
from typing import Annotated

from settings.arguments import Settings
from settings.errors import Refused
from training.stages import Stage


def multilayer(
    settings: Settings,
    *,
    rounds: Annotated[int, "at least 1", "at most 1000"] = 3,
    sparse: Annotated[float, "above 0", "below 1"] = 0.5,
) -> Annotated[list[Stage], "cuts", "removes", "prune_imp: zero_fraction(counts='multilayer')", "prune_gate: output", "reg: l1"]:
    """In rounds train with --reg l1, take out filters of few large weights, train without it (Singh et al., 2019).

    arXiv 1811.08342: sparsity induction; one threshold; Algorithm 1; removal from the weights that were not thresholded,
    with the outputs of the masked network; retraining. --epochs is divided evenly between the rounds, and the fraction
    `sparse` of a round is with the penalty. Each stage goes through the whole learning-rate schedule. Raises Refused where
    a stage would have no epoch.
    """
    training, stages = settings.training, []
    for number in range(rounds):
        epochs = training.epochs * (number + 1) // rounds - training.epochs * number // rounds
        penalised = int(sparse * epochs + 1e-9)
        if not 0 < penalised < epochs:
            raise Refused(f"--procedure multilayer: {training.epochs} epochs leave none for a stage of its {rounds} rounds")
        name, enter = f"round {number + 1}", ("select(held_out=True)", "remove")
        stages += [
            Stage(f"{name}, sparsity", penalised, training.lr, masks_stay=True, reg=training.reg),
            Stage(f"{name}, retraining", epochs - penalised, training.lr, enter, fixed=("epochs",), masks_stay=True, reg="none"),
        ]
    return [replace(stages[0], warmup_epochs=training.warmup_epochs), *stages[1:]]
