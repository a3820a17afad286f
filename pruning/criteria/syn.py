"""This criterion, syn, keeps the weights whose loss the network would feel, by weight times gradient."""

from typing import Annotated

from torch import Tensor

from models import Unit
from pruning.context import Context


def syn(unit: Unit, context: Annotated[Context, "reads images"]) -> Tensor:
    """Connection sensitivity (Lee et al., 2019, arXiv 1810.02340): sum |w * g|, where g is the mean over the scoring sample."""
    return context.groups(unit.weight.detach() * context.gradient(unit)).abs().sum(-1)
