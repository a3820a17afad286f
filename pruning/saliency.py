"""This file computes what several criteria and scores are made of."""

import torch
from torch import Tensor

from models import Unit
from pruning.context import Context


def connection_sensitivity(unit: Unit, context: Context, per_class: int = 0) -> Tensor:
    """Return sum |w * g| over the weights of each piece; see `Context.gradient` for g and `per_class`."""
    return context.groups(unit.weight.detach() * context.gradient(unit, per_class)).abs().sum(-1)


def spread_of(correlations: Tensor, k: float = 1e-5) -> float:
    """Return -sum of log(v + k) + 1 / (v + k) over the eigenvalues v of correlations between images, (images, images).

    It is the larger the less they correlate; at most about -1 an image. NaN for correlations that are not finite.
    """
    if not correlations.isfinite().all():
        return float("nan")
    values = torch.linalg.eigvalsh(correlations) + k
    return -float((values.log() + 1 / values).sum())
