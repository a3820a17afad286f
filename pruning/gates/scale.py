"""This file defines the gate of learned scales, which `--reg sss` puts on a network and moves."""

import torch
from torch import Tensor, nn

from models import Network
from models.layers import Gate, Unit


class Scale(Gate):
    """A scale of at least 0 multiplies the output of a unit: of all its filters, of each group of them, or of each one.

    `scale` has the shape (structures,), and begins at 1; the filters are divided evenly among the structures, in their
    order. Where it is 0 they are as good as removed. A proximal step moves it in place of the optimiser, whose learning rate
    for it is 0; `velocity` is that step's momentum.
    """

    learning_rate = 0.0
    scales = True

    def __init__(self, unit: Unit, structures: int):
        super().__init__()
        like, self.filters = unit.weight.detach(), unit.filters
        self.scale = nn.Parameter(like.new_ones(structures))
        self.register_buffer("velocity", like.new_zeros(structures))

    @property
    def of_filters(self) -> Tensor:
        """The scale of each filter, (filters,)."""
        return self.scale.repeat_interleave(self.filters // len(self.scale))

    @property
    def live(self) -> Tensor:
        return (self.of_filters != 0).to(self.scale.dtype)

    def multiplied(self, x: Tensor) -> Tensor:
        return x * self.of_filters.to(x.dtype).view(-1, *[1] * (x.dim() - 2))

    def forward(self, unit: Unit, x: Tensor) -> Tensor:
        return self.multiplied(x)

    def decide(self) -> Tensor:
        return self.scale.detach() != 0

    @torch.no_grad()
    def settle(self, unit: Unit) -> None:
        """Multiply batch norm or, without it, the layer: behind a ReLU that is the same, as no scale is negative."""
        unit.scale(self.of_filters)


def put_scales(network: Network, of: str) -> None:
    """Put a scale on every residual "block", "group" of filters, or "filter" of a network that has no gates.

    A block's is on the last unit of its branch. ValueError for a network without such structures.
    """
    if of == "block":
        structures = {units[-1]: 1 for units in network.branches.values()}
    elif of == "group":
        tied = {link.unit for link in network.links if link.ties}
        convolutions = network.prunable_convolutions.items()
        structures = {unit: unit.groups for name, unit in convolutions if unit.groups > 1 and name not in tied}
    else:
        structures = {unit: unit.filters for unit in network.prunable_convolutions.values()}
    if not structures:
        raise ValueError(f"of='{of}' is about {'residual blocks' if of == 'block' else f'{of}s'}, and this network has none")
    for unit, number in structures.items():
        unit.gate = Scale(unit, number)
