from torch import Tensor

from models import Unit
from pruning.context import Context, singular_values

GRANULARITIES = ("structured",)
READS_IMAGES = True
READS_MAPS = True


def energy(units: dict[str, Unit], context: Context) -> dict[str, Tensor]:
    """Nuclear norm of a filter's feature maps (Yeom et al., 2021, arXiv 2103.10858): sum of singular values, mean over images."""
    energies = context.responses(units, lambda maps: singular_values(maps).sum(-1))
    return {name: found.mean(0) for name, found in energies.items()}
