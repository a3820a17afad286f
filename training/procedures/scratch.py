"""The control of pruning trains a network that pruning made smaller anew, from fresh weights."""

from settings.arguments import Settings
from training.stages import Stage


def scratch(settings: Settings, *, model: str) -> list[Stage]:
    """Train the smaller network of a model.pt anew from fresh weights (Liu et al., 2019, arXiv 1810.05270)."""
    training = settings.training
    shrink = f"shrink(model={model!r})"
    return [Stage("from scratch", training.epochs, training.lr, enter=(shrink,), warmup_epochs=training.warmup_epochs)]
