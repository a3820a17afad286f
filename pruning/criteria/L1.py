from typing import Literal

from torch import Tensor

from models import Unit
from pruning.context import Context


def L1(unit: Unit, context: Context, *, reduce: Literal["sum", "mean"] = "sum") -> Tensor:
    """L1 norm of the weights (Li et al., 2017, arXiv 1608.08710): sum |w|, or with reduce='mean' the mean |w|.

    Within a layer the two rank alike; between layers they differ, unless the scope normalises scores by layer.
    """
    return getattr(context.groups(unit.weight.detach()).abs(), reduce)(-1)
