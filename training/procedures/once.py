"""The plain procedure trains once."""

from settings.arguments import Settings
from training.stages import Stage


def once(settings: Settings) -> list[Stage]:
    """Train for --epochs epochs, while pruning as --prune_phase says."""
    training = settings.training
    return [Stage("training", training.epochs, training.lr, warmup_epochs=training.warmup_epochs)]
