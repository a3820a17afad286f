"""This criterion, mean_activation, keeps the filters with large outputs."""

from typing import Annotated

from torch import Tensor

from models import Unit
from pruning.context import Context


def mean_activation(
    units: Annotated[dict[str, Unit], "filters only"], context: Annotated[Context, "reads images", "reads maps"]
) -> dict[str, Tensor]:
    """Mean of a filter's outputs behind the ReLU, over images and positions (Molchanov et al., 2017, arXiv 1611.06440)."""
    means = context.responses(units, lambda maps: maps.double().mean((2, 3)))
    return {name: by_image.mean(0) for name, by_image in means.items()}
