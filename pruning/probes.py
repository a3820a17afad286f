"""This file defines probes, which show a unit's output while a network is scored."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from models import Unit
from models.layers import Gate


def maps_of(x: Tensor) -> Tensor:
    """Return an output as maps, (images, filters, height, width); those of a linear layer have one pixel."""
    return x if x.dim() == 4 else x[..., None, None]


class Probe(Gate):
    """A probe stands in a unit's gate slot during a scoring: it shows the output before the mask to `see`, then applies the mask.

    With `differentiable` that output has a gradient, also where no weight before it has one.
    """

    def __init__(self, gate: Gate | None, see: Callable[[Tensor], None], differentiable: bool):
        super().__init__()
        self.gate, self.see, self.differentiable = gate or Gate(), see, differentiable

    @property
    def live(self) -> Tensor | None:
        return self.gate.live

    def weight(self, weight: Tensor) -> Tensor:
        return self.gate.weight(weight)

    def product(self, unit: Unit, x: Tensor) -> Tensor:
        return self.gate.product(unit, x)

    def decide(self) -> Tensor:
        return self.gate.decide()

    def forward(self, unit: Unit, x: Tensor) -> Tensor:
        if self.differentiable and not x.requires_grad:
            x.requires_grad_(True)
        self.see(x)
        return self.gate.multiplied(x)


@contextmanager
def watch(unit: Unit, see: Callable[[Tensor], None], differentiable: bool = False) -> Iterator[None]:
    """Within this block `see` is called with every output of the unit, before its mask; see `Probe`."""
    gate = unit.gate
    unit.gate = Probe(gate, see, differentiable)
    try:
        yield
    finally:
        unit.gate = gate
