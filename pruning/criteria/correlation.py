from torch import Tensor

from models import Unit
from models.numerics import precise
from pruning.context import Context

GRANULARITIES = ("structured",)


def correlation(unit: Unit, context: Context) -> Tensor:
    """How little a filter repeats the others: 1 - mean_j |C_ij| over the layer's other live filters j.

    C is the Pearson correlation of the flattened filters, what --reg reg_cov holds down while training; 1 for a filter
    that is constant or alone.
    """
    filters = precise(context.groups(unit.weight.detach()))
    live = unit.alive(filters.dtype)
    centred = filters - filters.mean(1, keepdim=True)
    directions = centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-12)
    between = (directions @ directions.mT).abs().fill_diagonal_(0)
    return 1 - between @ live / (live.sum() - live).clamp_min(1)
