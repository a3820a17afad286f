"""Probes: what shows a unit's output while a network is scored."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from models import Unit


def maps_of(x: Tensor) -> Tensor:
    """A linear layer's output as maps of one pixel."""
    return x if x.dim() == 4 else x[..., None, None]


class Probe(nn.Module):
    """In a unit's gate slot for the time of a scoring: shows its output before the mask, and passes the mask on."""

    def __init__(self, gate: nn.Module | None, see: Callable[[Tensor], None], differentiable: bool):
        super().__init__()
        self.gate, self.see, self.differentiable = gate, see, differentiable

    @property
    def live(self) -> Tensor | None:
        return None if self.gate is None else self.gate.live

    def weight(self, weight: Tensor) -> Tensor:
        return weight if self.gate is None else self.gate.weight(weight)

    def product(self, unit: Unit, x: Tensor) -> Tensor:
        return unit.multiply(x, unit.layer.weight) if self.gate is None else self.gate.product(unit, x)

    def normalise(self, unit: Unit, x: Tensor) -> Tensor:
        return unit.norm(x)

    def forward(self, unit: Unit, x: Tensor) -> Tensor:
        if self.differentiable and not x.requires_grad:
            x.requires_grad_(True)
        self.see(x)
        return x if self.gate is None else self.gate.multiplied(x)


@contextmanager
def watch(unit: Unit, see: Callable[[Tensor], None], differentiable: bool = False) -> Iterator[None]:
    gate = unit.gate
    unit.gate = Probe(gate, see, differentiable)
    try:
        yield
    finally:
        unit.gate = gate
