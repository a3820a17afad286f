"""The control of pruning trains a network that pruning made smaller anew, from fresh weights."""

from typing import Literal

from settings.arguments import Settings
from training.earlier_networks import times_smaller
from training.stages import Stage


def scratch(settings: Settings, *, of: str, budget: Literal["E", "B"] = "E", cap: float = 0.0, times: float = 0.0) -> list[Stage]:
    """Train the smaller network of a model.pt or a run anew from fresh weights (Liu et al., 2019, arXiv 1810.05270).

    budget='E' trains for --epochs, 'B' with the compute of the whole network: int(--epochs x MACs of the whole network / MACs
    of the smaller one), at most `cap` times --epochs (2 on ImageNet; 0 is no cap). The learning-rate schedule is stretched.
    `times` is that ratio of MACs; the program fills it in, so that a run that goes on needs no file.
    """
    training, factor = settings.training, 1.0
    if budget == "B":
        factor = times or times_smaller(of, settings)
        factor = min(factor, cap) if cap else factor
    # a product that falls short of a whole number by rounding counts as that number
    epochs = int(training.epochs * factor + 1e-6)
    return [Stage("from scratch", epochs, training.lr, (f"shrink(of={of!r})",), warmup_epochs=training.warmup_epochs)]
