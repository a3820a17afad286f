"""This criterion, L2, keeps the filters with a large Euclidean norm."""

from typing import Annotated

from torch import Tensor

from models import Unit
from pruning.context import Context


def L2(unit: Unit, context: Context) -> Annotated[Tensor, "magnitude"]:
    """L2 norm of the weights (He et al., 2018, arXiv 1808.06866): sqrt(sum w^2)."""
    return context.groups(unit.weight.detach()).norm(dim=-1)
