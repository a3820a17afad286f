"""This criterion, energy, keeps the filters whose feature maps have a large nuclear norm."""

from typing import Annotated

from torch import Tensor

from models import Unit
from models.numerics import singular_values
from pruning.context import Context


def energy(
    units: Annotated[dict[str, Unit], "filters only"], context: Annotated[Context, "reads images", "reads maps"]
) -> dict[str, Tensor]:
    """Nuclear norm of a filter's feature maps (Yeom et al., 2021, arXiv 2103.10858): sum of singular values, mean over images."""
    energies = context.responses(units, lambda maps: singular_values(maps).sum(-1))
    return {name: by_image.mean(0) for name, by_image in energies.items()}
