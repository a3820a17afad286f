"""This criterion, SynFlow, keeps the weights through which most flows from input to output, whatever the data."""

from typing import Annotated

from torch import Tensor

from models import Unit
from pruning.context import Context


def SynFlow(unit: Unit, context: Context) -> Annotated[Tensor, "scope: global(normalise='none', floor=0)"]:
    """Synaptic flow (Tanaka et al., 2020, arXiv 2006.05467): sum |w * dR/dw|, where R = 1^T (product of all |W_l|) 1.

    R is the sum of the outputs for an input of ones, in evaluation and float64, once every parameter and buffer is replaced
    by its absolute value. The scores of each layer add up to R, so that no layer is emptied while others are not, if the
    cut is made in many rounds: --prune_phase "init(rounds=100)". Failed where R is not finite.
    """
    return context.groups(context.synaptic_flow(unit)).sum(-1)
