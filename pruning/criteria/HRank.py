from typing import Annotated, Literal

import torch
from torch import Tensor

from models import Unit
from pruning.context import Context, singular_values


def HRank(
    units: Annotated[dict[str, Unit], "filters only"],
    context: Annotated[Context, "reads images", "reads maps"],
    *,
    ties: Literal["energy", "index"] = "energy",
) -> dict[str, Tensor]:
    """Rank of a filter's feature maps (Lin et al., 2020, arXiv 2002.10179), the mean over the images.

    The numerical rank in float32: singular values above the largest x max(height, width) x 2^-23. Many filters have full
    rank in all images; ties='energy' lets the one with the larger sum of singular values stay, by less than a rank in a
    single image could change.
    """

    def statistic(maps: Tensor) -> Tensor:
        values = singular_values(maps)
        least = values.amax(-1, keepdim=True) * max(maps.shape[2:]) * torch.finfo(torch.float32).eps
        return torch.stack([(values > least).sum(-1).double(), values.sum(-1)], -1)

    scores = {}
    for name, found in context.responses(units, statistic).items():
        ranks, energies = found.mean(0).unbind(-1)
        share = energies / energies.sum().clamp_min(1e-30)
        scores[name] = ranks + share / (2 * len(found)) if ties == "energy" else ranks
    return scores
