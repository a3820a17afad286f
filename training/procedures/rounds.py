"""The procedure of lottery tickets prunes in rounds, and between them rewinds what training has changed."""

from typing import Annotated, Literal

from settings.arguments import Settings
from training.stages import Stage


def rounds(
    settings: Settings,
    *,
    n: Annotated[int, "at least 1", "at most 1000"] = 8,
    fraction: Annotated[float, "above 0", "below 1"] = 0.2,
    rewind: Literal["weights", "learning_rate", "none"] = "weights",
    to: str = "0it",
    classifier: Annotated[float, "above 0", "at most 1"] = 1.0,
) -> Annotated[list[Stage], "cuts", "amounts", "compares trainings", "prune_scope: global(normalise='none')"]:
    """Train, then n times cut a `fraction` of what is left, rewind, and train again (Frankle and Carbin, 2019).

    arXiv 1803.03635; rewinding to a later step `to`, such as '500it' or '2ep': Frankle et al., 2020 (arXiv 1912.05671); of
    the learning rate: Renda et al., 2020 (arXiv 2003.02389). With 'weights' the weights, the statistics and the optimiser are
    those of the step `to`, with 'learning_rate' they stay and the optimiser begins anew; both go through the schedule from
    `to` on. With 'none' the weights stay, and each round trains for --epochs at --finetune_lr. Of r rounds (1 - fraction)^r
    is left; the last linear layer loses `classifier` times the fraction in each.
    """
    training = settings.training
    kept = {"remember": (to,)} if rewind == "weights" else {}
    again = {"lr": training.lr, "start": to, "warmup_epochs": training.warmup_epochs, "fixed": ("epochs",)}
    if rewind == "none":  # the schedule's factor is 1 at its beginning, so that the rate stays as it is
        again = {"lr": settings.ending.finetune_lr, "progress": (0.0, 0.0), "fixed": ("epochs", "finetune_lr")}
    stages = [Stage("round 0", training.epochs, training.lr, warmup_epochs=training.warmup_epochs, masks_stay=True, **kept)]
    options = f"fraction={fraction!r}, classifier={classifier!r}"
    for number in range(1, n + 1):
        enter = (f"measure_round(number={number - 1})", f"cut(number={number}, {options})")
        enter += (f"rewind(to={to!r})",) if rewind == "weights" else ("restart",)
        stages.append(Stage(f"round {number}", training.epochs, enter=enter, masks_stay=True, **again))
    return [*stages, Stage(f"after round {n}", 0, training.lr, (f"measure_round(number={n})",), masks_stay=True)]
