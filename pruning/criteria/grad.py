"""This criterion, grad, keeps the weights whose gradient is large."""

from typing import Annotated

from torch import Tensor

from models import Unit
from pruning.context import Context


def grad(unit: Unit, context: Annotated[Context, "reads images"]) -> Tensor:
    """Size of the loss's gradient: sum |g|, where g is the mean over the scoring sample at the masked network."""
    return context.groups(context.gradient(unit)).abs().sum(-1)
