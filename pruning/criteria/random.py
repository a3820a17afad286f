"""This criterion, random, keeps filters at random: every other criterion is compared with it."""

import torch
from torch import Tensor

from models import Unit
from pruning.context import Context


def random(unit: Unit, context: Context) -> Tensor:
    """Uniform in [0, 1), the control: --seed fixes the scores, which are the same at every update of a run."""
    weight = unit.weight
    shape = context.groups(weight.detach()).shape[:-1]
    return torch.rand(shape, generator=context.generator).to(weight.device)
