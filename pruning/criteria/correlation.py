"""This criterion, correlation, keeps the filters that are unlike the others of their layer."""

from typing import Annotated

import torch
from torch import Tensor

from models import Unit
from models.numerics import correlations, precise
from pruning.context import Context


def correlation(unit: Annotated[Unit, "filters only", "unlike filters"], context: Context) -> Tensor:
    """How little a filter repeats the others: 1 - mean_j |C_ij| over the layer's other live filters j.

    C is the Pearson correlation of the flattened filters, which --reg reg_cov makes small while training. A filter that is
    constant, or alone in its layer, has the score 1.
    """
    filters = precise(context.groups(unit.weight.detach()))
    live = unit.alive(filters.dtype)
    related = correlations(filters, torch.ones_like(live)).abs()  # filters that are cut have a score too
    return 1 - related @ live / (live.sum() - live).clamp_min(1)
