import torch
from torch import Tensor

from models import Unit
from pruning.context import Context


def random(unit: Unit, context: Context) -> Tensor:
    """Uniform in [0, 1), the control: its own generator, the same scores at every update of a run, fixed by --seed."""
    weight = unit.weight
    shape = context.groups(weight.detach()).shape[:-1]
    return torch.rand(shape, generator=context.generator).to(weight.device)
