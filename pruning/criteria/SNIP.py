"""This criterion, SNIP, keeps the weights whose loss the network would feel: it is syn on as many images of each class."""

from typing import Annotated

from torch import Tensor

from models import Unit
from pruning.context import Context
from pruning.saliency import connection_sensitivity


def SNIP(
    unit: Unit, context: Annotated[Context, "reads images"], *, per_class: Annotated[int, "images a class"] = 10
) -> Annotated[Tensor, "scope: global(normalise='none', floor=0)"]:  # all are changes of one loss
    """Connection sensitivity (Lee et al., 2019, arXiv 1810.02340): sum |w * g|, g of the mean loss of images of each class.

    |w * g| is the loss's slope in a mask on the weight. `per_class` images of each class are read, or with 0 the scoring
    sample. Batch norm uses the statistics of these images.
    """
    return connection_sensitivity(unit, context, per_class)
