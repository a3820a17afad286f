"""This criterion, OBD, keeps the weights whose loss the curvature says would be felt, by the diagonal of the Fisher."""

from typing import Annotated

from torch import Tensor

from models import Unit
from pruning import fisher
from pruning.context import Context


def OBD(
    units: dict[str, Unit], context: Annotated[Context, "reads images"]
) -> Annotated[dict[str, Tensor], "scope: global(normalise='none')"]:  # all are rises of one loss
    """Optimal brain damage (LeCun, Denker and Solla, 1989): F_qq w_q^2 / 2, where F_qq = mean over images g_q^2; summed.

    It is the rise of the loss when weight q alone is cut from a trained network. The Fisher stands in for the Hessian, in
    evaluation, where the batch an image is in does not matter.
    """
    curvature = fisher.diagonal(context, units)
    return {
        name: context.groups(curvature[name] * unit.weight.detach().double().square()).sum(-1) / 2 for name, unit in units.items()
    }
