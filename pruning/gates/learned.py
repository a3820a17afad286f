"""This file defines what gates that learn have in common: they decide by themselves what is cut, as a penalty asks of them.

In training such a gate draws at random, by torch's own generator, whose state a checkpoint keeps. In evaluation it is
deterministic, and what it then closes is cut.
"""

import torch
from torch import Tensor

from models.layers import Gate, Unit


class Learned(Gate):
    """A gate of one `unit`. `strength` multiplies the penalty; it is a tensor, so that a captured pass sees it change."""

    def __init__(self, unit: Unit, learning_rate: float):
        super().__init__()
        self.__dict__["unit"] = unit  # not as a module: the unit holds the gate
        self.learning_rate = learning_rate
        strength = torch.zeros((), dtype=unit.weight.dtype, device=unit.weight.device)
        self.register_buffer("strength", strength, persistent=False)

    def pieces(self, weight: Tensor) -> Tensor:
        """Return a tensor like the unit's weight as (pieces..., weights of a piece), where pieces... is the gate's shape."""
        raise NotImplementedError

    def before_step(self, epochs: float, images: int) -> None:
        """Make ready for a training step, so many epochs after the first one. `images` are those that an epoch trains on."""
        raise NotImplementedError
