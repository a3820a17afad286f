"""This file defines the soft filter mask, under which cut filters go on learning from 0 as if nothing were masked."""

import torch
from torch import Tensor

from pruning.gates.output import Output


class Soft(Output):
    """The mask of Soft Filter Pruning (He et al., 2018, arXiv 1808.06866): it sets weights to 0, and lets them grow again.

    Whenever masks are made, and behind the last step of every epoch in which they move, the weights of the filters that are
    cut become 0; momentum and batch norm stay as they are. Until then training sees no mask. Evaluation does, as an
    `Output` mask, so that masked equals removed; so does training once masks are fixed. The authors' code has no mask: there
    batch norm's shift still passes behind a filter of zeros.
    """

    soft = True

    @property
    def _absent(self) -> bool:
        """Whether this pass sees no mask."""
        return self.training and self.straight_through

    def product(self, unit, x: Tensor) -> Tensor:
        return unit.multiply(x, unit.layer.weight) if self._absent else super().product(unit, x)

    def normalise(self, unit, x: Tensor) -> Tensor:
        return unit.norm(x) if self._absent else super().normalise(unit, x)

    def forward(self, unit, x: Tensor) -> Tensor:
        return x if self._absent else super().forward(unit, x)

    @torch.no_grad()
    def overwrite(self, unit) -> None:
        unit.layer.weight.masked_fill_(~self.decide().view(-1, *[1] * (unit.layer.weight.dim() - 1)), 0)
