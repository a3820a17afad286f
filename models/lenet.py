"""This file defines the LeNets of LeCun et al., 1998, as pruning has used them since Han et al., 2015 (arXiv 1506.02626).

They have no batch norm. For grey images of 28 pixels they have the published 266,610 and 431,080 parameters.
"""

from typing import Annotated

from torch import Tensor, nn

from models.layers import Unit, WholeMap, initialise
from models.network import Network
from models.pooling import Halve


class _LeNet(Network):
    """Convolutions, each followed by max-pooling, then linear layers with ReLUs and dropout between them.

    `images` are the channels and the pixels of a side.
    """

    def __init__(
        self, convolutions: tuple[int, ...], hidden: tuple[int, ...], classes: int, images: tuple[int, int], dropout: float
    ):
        super().__init__()
        channels, size = images
        self.convolutions, self.linear, self.halve = nn.Sequential(), nn.Sequential(), Halve()
        source = "input"
        for filters in convolutions:
            source, size = self._add(Unit(nn.Conv2d(channels, filters, 5), norm=False, activation=False), source), (size - 4) // 2
            channels = filters
        for outputs in (*hidden, classes):
            layer = WholeMap(channels, outputs, size) if len(self.linear) == 0 else nn.Linear(channels, outputs)
            last = len(self.linear) == len(hidden)
            source = self._add(
                Unit(layer, norm=False, activation=not last, dropout=0.0 if last else dropout), source, "output" if last else None
            )
            channels = outputs
        initialise(self)

    def _add(self, unit: Unit, source: str, target: str | None = None) -> str:
        """Append a unit that reads `source`, and return the node that it writes: `target`, or one of its own."""
        where = "linear" if unit.is_linear else "convolutions"
        layers = self.get_submodule(where)
        path = f"{where}.{len(layers)}"
        layers.append(unit)
        self.wire(path, source, target or path)
        return target or path

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.convolutions:
            x = self.halve(unit(x))
        x = self.linear[0](x)[:, :, 0, 0]
        for unit in self.linear[1:]:
            x = unit(x)
        return x


def lenet300(*, classes: int = 10, channels: int = 3, size: int = 32, dropout: Annotated[float, "below 1"] = 0.0) -> Network:
    """LeNet-300-100, two hidden linear layers (LeCun et al., 1998)"""
    return _LeNet((), (300, 100), classes, (channels, size), dropout)


def lenet5(*, classes: int = 10, channels: int = 3, size: int = 32, dropout: Annotated[float, "below 1"] = 0.0) -> Network:
    """LeNet-5 in its Caffe form, two convolutions of 20 and 50 filters, a hidden linear layer of 500 (LeCun et al., 1998)"""
    return _LeNet((20, 50), (500,), classes, (channels, size), dropout)
