"""This criterion, FPGM, keeps the filters that are far from the geometric median of their layer."""

from typing import Annotated, Literal

import torch
from torch import Tensor

from models import Unit
from models.numerics import precise
from pruning.context import Context


def FPGM(
    unit: Annotated[Unit, "filters only", "unlike filters"],
    context: Context,
    *,
    distance: Literal["L2", "L1", "cos"] = "L2",
    by_norm: Annotated[float, "at most 1"] = 0.0,
) -> Tensor:
    """Distance from the geometric median (He et al., 2019, arXiv 1811.00250): sum_j ||F_i - F_j|| over the live filters j.

    Filters near the median are replaceable. Filters that are cut have a distance, but do not count as neighbours j, or they
    would hold each other down. distance='cos' sums 1 - cosine. `by_norm` is the fraction of a layer, to the nearest whole
    filter, that goes first, by its L2 norm, before the distances among the rest: the paper's FPGM-mix. Of 16 filters 0.1 is
    2; where 0.4 go in all, 6 do, 4 by their distance. The authors' code rounds both numbers down, to 1 and 4.
    """
    filters = precise(context.groups(unit.weight.detach()))
    live = unit.alive(filters.dtype)
    norms = filters.norm(dim=1)
    smallest = norms.argsort(stable=True)[: int(by_norm * len(filters) + 0.5)]
    live[smallest] = 0
    if distance == "cos":
        directions = filters / norms.clamp_min(1e-30).unsqueeze(1)
        distances = 1 - directions @ directions.mT
    else:
        distances = torch.cdist(filters, filters, p=float(distance[1]), compute_mode="donot_use_mm_for_euclid_dist")
    scores = distances @ live
    if len(smallest):  # their scores are below every distance, in the order of the norms
        scores[smallest] = norms[smallest] - norms[smallest].max() - 1
    return scores
