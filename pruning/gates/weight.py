"""This file defines the mask on a layer's weight, before batch norm."""

import torch
from torch import Tensor

from pruning.gates.mask import Mask


class Weight(Mask):
    """A mask on the weight, before batch norm, as published; it has one entry for each piece that is cut as a whole.

    Its shape is that of the weight's first dimensions: (filters,), (filters, inputs), or the whole weight's. With one entry
    a filter this is the published placement, before batch norm: a masked filter has variance 0 there, its straight-through
    gradient is multiplied by 1 / sqrt(eps) = 316, and batch norm's bias still passes.

    With `held`, which single weights alone may have, what is masked has these values in place of 0. Nothing trains them. Such
    a weight is in force as the others are, and so it counts as left, unless it is 0.
    """

    exact = False

    def __init__(self, shape, device=None):
        super().__init__(shape, device)
        self.register_buffer("held", None)

    def hold(self, values: Tensor) -> None:
        """Give what is masked these values, of the weight's shape, which are 0 where the mask is 1."""
        if self.held is None:
            self.held = torch.zeros_like(values)
        self.held.copy_(values)

    def decide(self) -> Tensor:
        return super().decide() if self.held is None else super().decide() | (self.held != 0)

    @property
    def by_filter(self) -> bool:
        return self.mask.dim() == 1

    @property
    def live(self) -> Tensor:
        return self.mask if self.by_filter else self.decide().flatten(1).any(1).to(self.mask.dtype)

    def weight(self, weight: Tensor) -> Tensor:
        masked = self._apply_to(weight, self.mask.view(*self.mask.shape, *[1] * (weight.dim() - self.mask.dim())))
        return masked if self.held is None else masked + self.held
