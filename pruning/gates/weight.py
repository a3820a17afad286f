"""This file defines the mask on a layer's weight, before batch norm."""

from torch import Tensor

from pruning.gates.mask import Mask


class Weight(Mask):
    """A mask on the weight, before batch norm, as published; it has one entry for each piece that is cut as a whole.

    Its shape is that of the weight's first dimensions: (filters,), (filters, inputs), or the whole weight's. With one entry
    a filter this is the published placement, before batch norm: a masked filter has variance 0 there, its straight-through
    gradient is multiplied by 1 / sqrt(eps) = 316, and batch norm's bias still passes.
    """

    exact = False

    @property
    def by_filter(self) -> bool:
        return self.mask.dim() == 1

    @property
    def live(self) -> Tensor:
        return self.mask if self.by_filter else self.mask.flatten(1).amax(1)

    def weight(self, weight: Tensor) -> Tensor:
        return self._apply_to(weight, self.mask.view(*self.mask.shape, *[1] * (weight.dim() - self.mask.dim())))
