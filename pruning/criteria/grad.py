from torch import Tensor

from models import Unit
from pruning.context import Context

READS_IMAGES = True


def grad(unit: Unit, context: Context) -> Tensor:
    """Size of the loss's gradient: sum |g|, g the mean over the scoring sample at the masked network."""
    return context.groups(context.gradient(unit)).abs().sum(-1)
