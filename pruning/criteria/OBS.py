"""This criterion, OBS, keeps the weights whose loss would be felt although the other weights of their block make up for it."""

from typing import Annotated

from torch import Tensor

from models import Unit
from pruning import fisher
from pruning.context import Context


def OBS(
    units: dict[str, Unit],
    context: Annotated[Context, "reads images"],
    *,
    block: Annotated[int, "at least 1"] = 100,
    damping: Annotated[float, "at least 1e-9"] = 1e-5,
) -> Annotated[dict[str, Tensor], "scope: global(normalise='none')"]:  # all are rises of one loss
    """Optimal brain surgeon (Hassibi and Stork, 1993; WoodFisher, arXiv 2004.14340): w_q^2 / (2 [H^-1]_qq); summed.

    H = damping + F is in blocks of `block` weights of a layer, where F is the mean over images of g g^T. It is the rise of the
    loss when weight q is cut and the others of its block change by -w_q / [H^-1]_qq H^-1[:, q], which --reconstruct hessian
    does. In evaluation. Where gradients are much smaller than the damping, the order is that of the magnitude.
    """
    scores = {}
    for name, inverse in fisher.inverses(context, units, block, damping):
        weight = units[name].weight.detach().double()
        each = inverse.diagonal(dim1=1, dim2=2).flatten()[: weight.numel()].view(weight.shape)
        scores[name] = context.groups(weight.square() / (2 * each)).sum(-1)
    return scores
