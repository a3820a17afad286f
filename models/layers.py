"""What every network here is made of: units with a slot for a gate, and the wiring that says how they hang together."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Unit(nn.Module):
    """layer -> batch norm -> ReLU, the last two optional, with an empty slot for a gate.

    `layer` is a Conv2d or a Linear; its outputs are the unit's filters. A gate, if one is put into the slot, offers
    `weight(w)`, the weight in force; `product(unit, x)`, the layer's product; and a call on the unit's output.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear, norm: bool = True, activation: bool = True):
        super().__init__()
        self.layer = layer
        width = layer.weight.shape[0]
        kind = nn.BatchNorm2d if isinstance(layer, nn.Conv2d) else nn.BatchNorm1d
        self.norm = kind(width) if norm else None
        self.activation = activation
        self.gate = None

    @property
    def is_convolution(self) -> bool:
        return isinstance(self.layer, nn.Conv2d)

    @property
    def filters(self) -> int:
        return self.layer.weight.shape[0]

    @property
    def weight(self) -> Tensor:
        """The dense weight, (filters, inputs, height, width) or (filters, inputs)."""
        return self.layer.weight

    @property
    def weight_in_force(self) -> Tensor:
        """The weight that the forward pass multiplies with: the dense one unless a weight mask is on."""
        return self.layer.weight if self.gate is None else self.gate.weight(self.layer.weight)

    @property
    def live(self) -> Tensor | None:
        """Which filters are in force, (filters,) of 0 and 1, or None where nothing is masked by filters."""
        return None if self.gate is None else self.gate.live

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's product with another weight of the same shape."""
        layer = self.layer
        if self.is_convolution:
            return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding)
        return F.linear(x, weight, layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate
        x = self.multiply(x, self.layer.weight) if gate is None else gate.product(self, x)
        if self.norm is not None:
            x = self.norm(x)
        if self.activation:
            x = F.relu(x)
        return x if gate is None else gate(x)


def conv_unit(inputs: int, filters: int, kernel: int, stride: int = 1, activation: bool = True) -> Unit:
    """A convolution without bias, padded to keep the size, with batch norm."""
    layer = nn.Conv2d(inputs, filters, kernel, stride, padding=kernel // 2, bias=False)
    return Unit(layer, activation=activation)


@dataclass(frozen=True)
class Link:
    """One step of a network's wiring: a unit reads the channels of `source` and adds its own to those of `target`.

    A target with several writers is a residual stream. `unit` is the unit's path in the model; None means a shortcut
    without parameters, which copies channel c of the source to channel c of the target.
    """

    unit: str | None
    source: str
    target: str


class Network(nn.Module):
    """A network with declared wiring: `links` in the order of execution, from "input" to "output"."""

    def __init__(self):
        super().__init__()
        self.links: list[Link] = []

    def wire(self, unit: str | None, source: str, target: str) -> None:
        """Declare one step; the order of the calls is the order of execution."""
        self.links.append(Link(unit, source, target))

    @property
    def all_units(self) -> dict[str, Unit]:
        """Every unit by its path, in the order of execution."""
        return {link.unit: self.get_submodule(link.unit) for link in self.links if link.unit is not None}

    @property
    def units(self) -> dict[str, Unit]:
        """The convolutions: the units that have filters to prune. The classifier's linear layers are not among them."""
        return {name: unit for name, unit in self.all_units.items() if unit.is_convolution}


def initialise(network: nn.Module) -> None:
    """He et al., 2015 (arXiv 1502.01852): normal weights, biases 0, batch norm the identity.

    The variance is 2 / (k * k * filters) for a k x k convolution, as in the authors' own ResNets, and 2 / inputs for a
    linear layer.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(module.bias)


def pad_shortcut(x: Tensor, filters: int, stride: int) -> Tensor:
    """He et al., 2016 (arXiv 1512.03385), option A: every stride-th pixel, new channels zero, no parameters."""
    x = x[:, :, ::stride, ::stride]
    return F.pad(x, (0, 0, 0, 0, 0, filters - x.shape[1]))


def residual(branch: Tensor, shortcut: Tensor) -> Tensor:
    """The residual joint: the branch is added to the stream, then the ReLU."""
    return torch.relu(branch + shortcut)
