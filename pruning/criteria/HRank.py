"""This criterion, HRank, keeps the filters whose feature maps have a high rank."""

from typing import Annotated, Literal

import torch
from torch import Tensor

from models import Unit
from models.numerics import singular_values
from pruning.context import Context


def HRank(
    units: Annotated[dict[str, Unit], "filters only"],
    context: Annotated[Context, "reads images", "reads maps"],
    *,
    ties: Literal["energy", "index"] = "energy",
) -> dict[str, Tensor]:
    """Rank of a filter's feature maps (Lin et al., 2020, arXiv 2002.10179), the mean over the images.

    The rank is the numerical one of float32: the number of singular values above the largest x max(height, width) x 2^-23.
    Many filters have full rank in all images; with ties='energy' the sum of singular values decides between them, by less
    than one rank in one image would change.
    """

    def statistic(maps: Tensor) -> Tensor:
        values = singular_values(maps)
        least = values.amax(-1, keepdim=True) * max(maps.shape[2:]) * torch.finfo(torch.float32).eps
        return torch.stack([(values > least).sum(-1).double(), values.sum(-1)], -1)

    scores = {}
    for name, by_image in context.responses(units, statistic).items():
        ranks, energies = by_image.mean(0).unbind(-1)
        tie_breaker = energies / energies.sum().clamp_min(1e-30) / (2 * len(by_image))
        scores[name] = ranks + tie_breaker if ties == "energy" else ranks
    return scores
