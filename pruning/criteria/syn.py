"""This criterion, syn, keeps the weights whose loss the network would feel, by weight times gradient."""

from typing import Annotated

from torch import Tensor

from models import Unit
from pruning.context import Context
from pruning.saliency import connection_sensitivity


def syn(unit: Unit, context: Annotated[Context, "reads images"]) -> Tensor:
    """Connection sensitivity, SNIP's on the scoring sample (Lee et al., 2019, arXiv 1810.02340): sum |w * g|.

    g is the gradient of the mean loss of the sample.
    """
    return connection_sensitivity(unit, context)
