import torch
from torch import Tensor

from models import Unit
from pruning.context import Context

GRANULARITIES = ("structured",)
READS_IMAGES = True
READS_MAPS = True


def energy(units: dict[str, Unit], context: Context) -> dict[str, Tensor]:
    """Nuclear norm of a filter's feature maps (Yeom et al., 2021, arXiv 2103.10858): sum of singular values, mean over images."""

    def statistic(maps: Tensor) -> Tensor:
        maps = maps.double()
        rows = maps if maps.shape[2] <= maps.shape[3] else maps.mT
        return torch.linalg.eigvalsh(rows @ rows.mT).clamp_min(0).sqrt().sum(-1)

    return {name: found.mean(0) for name, found in context.responses(units, statistic).items()}
