"""The plain procedure trains once."""

from typing import Annotated

from settings.arguments import Settings
from training.stages import Stage, around_the_cut


def once(settings: Settings) -> Annotated[list[Stage], "repairs"]:
    """Train for --epochs epochs, while pruning as --prune_phase says; with --reconstruct the cut is repaired before an epoch.

    With 0 epochs the network of --init is cut, and repaired, before any training.
    """
    training = settings.training
    if settings.pruning.reconstruct != "none":
        return around_the_cut(settings, enter=("reconstruct",))
    if training.epochs == 0:
        return [Stage("no training", 0, training.lr, enter=("cut_first",) if settings.pruning.prune_type != "none" else ())]
    return [Stage("training", training.epochs, training.lr, warmup_epochs=training.warmup_epochs)]
