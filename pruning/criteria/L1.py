"""This criterion, L1, keeps the filters with large absolute weights."""

from typing import Annotated, Literal

from torch import Tensor

from models import Unit
from pruning.context import Context


def L1(unit: Unit, context: Context, *, reduce: Literal["sum", "mean"] = "sum") -> Annotated[Tensor, "magnitude"]:
    """L1 norm of the weights (Li et al., 2017, arXiv 1608.08710): sum |w|, or with reduce='mean' the mean |w|.

    Within a layer the sum and the mean rank filters alike; between layers they differ, unless the scope divides scores by
    their layer's mean.
    """
    return getattr(context.groups(unit.weight.detach()).abs(), reduce)(-1)
