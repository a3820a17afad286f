"""The slimming procedure trains with sparse scales of batch norm, takes out filters once, and trains as long again."""

from typing import Annotated

from settings.arguments import Settings
from training.stages import Stage


def slimming(settings: Settings, *, initial: Annotated[float, "above 0"] = 0.5) -> Annotated[list[Stage], "cuts", "removes"]:
    """Train with --reg, cut once, remove, and fine-tune without it for --epochs again (Liu et al., 2017, arXiv 1708.06519).

    Batch norm's scales begin at `initial`, as in the authors' code, unless the network was trained before. The fine-tuning
    goes through the whole learning-rate schedule once more.
    """
    training = settings.training
    enter = () if settings.network.init else (f"set_scales(value={initial!r})",)
    warm = {"warmup_epochs": training.warmup_epochs, "masks_stay": True}
    return [
        Stage("sparse training", training.epochs, training.lr, enter, **warm),
        Stage("slim training", training.epochs, training.lr, ("select", "remove"), fixed=("epochs",), reg="none", **warm),
    ]
