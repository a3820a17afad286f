"""A mask on the layer's weight, before batch norm."""

from torch import Tensor

from pruning.gates.mask import Mask


class WeightMask(Mask):
    """A mask on the layer's weight: one entry a filter, (filters,), or one a weight, of the weight's shape.

    By filters this is the published placement, before batch norm: a masked filter has variance 0 there, so that its
    straight-through gradient is multiplied by 1 / sqrt(eps) = 316, and batch norm's bias still passes.
    """

    @property
    def live(self) -> Tensor:
        return self.mask if self.mask.dim() == 1 else self.mask.flatten(1).amax(1)

    def weight(self, weight: Tensor) -> Tensor:
        mask = self.mask if self.mask.dim() > 1 else self.mask.view(-1, *[1] * (weight.dim() - 1))
        return self._apply_to(weight, mask)

    def product(self, unit, x: Tensor) -> Tensor:
        return unit.multiply(x, self.weight(unit.layer.weight))

    def multiplied(self, x: Tensor) -> Tensor:
        return x

    def forward(self, unit, x: Tensor) -> Tensor:
        return x
