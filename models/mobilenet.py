"""This file defines MobileNets, whose 3x3 convolutions are depthwise: filter c reads channel c only.

With stem='imagenet' they have the papers' five strides of 2, which are for 224 pixels. With stem='cifar', for 32x32 images,
the first of them is 1 in version 1, and the first two in version 2, as is usual for CIFAR: five would leave one pixel. The
last maps so have 2x2 and 4x4 pixels. Channels are `width` times the papers', rounded to a multiple of 8 as in the authors'
code for version 2. There is no dropout.
"""

from typing import Annotated, Literal

from torch import Tensor, nn

from models.joint import Joint
from models.layers import Unit, conv_unit, initialise
from models.network import Network
from models.shapes import divisible

# filters and stride of each depthwise-separable block of version 1
_SEPARABLE = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
# expansion, filters, number and first stride of the inverted residuals of version 2, stage by stage
_INVERTED = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class _MobileNet(Network):
    """A stem, then blocks of a depthwise 3x3 convolution with the stride and a 1x1 convolution, each with batch norm and ReLU."""

    def __init__(self, width: float, stem: str, classes: int, channels: int):
        super().__init__()
        inputs, source = divisible(32 * width, 8), "stem"
        self.stem, self.blocks = conv_unit(channels, inputs, 3, 2 if stem == "imagenet" else 1), nn.Sequential()
        self.wire("stem", "input", "stem")
        for number, (filters, stride) in enumerate(_SEPARABLE):
            filters, path = divisible(filters * width, 8), f"blocks.{number}"
            block = nn.Sequential()
            block.add_module("depthwise", conv_unit(inputs, inputs, 3, stride, groups=inputs))
            block.add_module("pointwise", conv_unit(inputs, filters, 1))
            self.blocks.append(block)
            self.wire(f"{path}.depthwise", source, f"{path}.depthwise", ties="channel")
            self.wire(f"{path}.pointwise", f"{path}.depthwise", f"{path}.pointwise")
            inputs, source = filters, f"{path}.pointwise"
        self.classifier = Unit(nn.Linear(inputs, classes), norm=False, activation=False)
        self.wire("classifier", source, "output")
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.stem(x)).mean((2, 3)))


class _Inverted(nn.Module):
    """An inverted residual: 1x1 to `expansion` times the channels, a depthwise 3x3 with the stride, and a linear 1x1.

    Where that keeps the shape it is added to its input, and nothing is behind the sum. Expanded once, there is no first 1x1.
    """

    def __init__(self, inputs: int, filters: int, stride: int, expansion: int):
        super().__init__()
        inner = expansion * inputs
        self.expand = conv_unit(inputs, inner, 1, activation="relu6") if expansion > 1 else None
        self.depthwise = conv_unit(inner, inner, 3, stride, activation="relu6", groups=inner)
        self.project = conv_unit(inner, filters, 1, activation=False)
        self.joint = Joint(activation=False) if stride == 1 and inputs == filters else None

    def forward(self, x: Tensor) -> Tensor:
        branch = self.project(self.depthwise(x if self.expand is None else self.expand(x)))
        return branch if self.joint is None else self.joint(branch, x)

    def declare(self, network: Network, path: str, source: str) -> str:
        """Wire the block, which stands at `path` in the network, and return the node it writes: `source`, or one of its own."""
        inner, target = source, path if self.joint is None else source
        if self.expand is not None:
            inner = f"{path}.expand"
            network.wire(inner, source, inner)
        network.wire(f"{path}.depthwise", inner, f"{path}.depthwise", ties="channel")
        network.wire(f"{path}.project", f"{path}.depthwise", target, None if self.joint is None else f"{path}.joint")
        return target


class _MobileNetV2(Network):
    """A stem, inverted residuals, and a 1x1 convolution that is never narrower than the paper's."""

    def __init__(self, width: float, stem: str, classes: int, channels: int):
        super().__init__()
        inputs, source, early = divisible(32 * width, 8), "stem", 2 if stem == "imagenet" else 1
        self.stem, self.blocks = conv_unit(channels, inputs, 3, early, activation="relu6"), nn.Sequential()
        self.wire("stem", "input", "stem")
        for number, (expansion, filters, blocks, first) in enumerate(_INVERTED):
            filters, first = divisible(filters * width, 8), early if number == 1 else first
            for block in range(blocks):
                path = f"blocks.{len(self.blocks)}"
                self.blocks.append(_Inverted(inputs, filters, 1 if block else first, expansion))
                source = self.blocks[-1].declare(self, path, source)
                inputs = filters
        self.last = conv_unit(inputs, divisible(1280 * max(width, 1.0), 8), 1, activation="relu6")
        self.wire("last", source, "last")
        self.classifier = Unit(nn.Linear(self.last.filters, classes), norm=False, activation=False)
        self.wire("classifier", "last", "output")
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.last(self.blocks(self.stem(x))).mean((2, 3)))


def mobilenet(
    *,
    width: Annotated[float, "above 0", "at most 16"] = 1.0,
    stem: Literal["cifar", "imagenet"] = "cifar",
    classes: int = 10,
    channels: int = 3,
) -> Network:
    """MobileNet for 32x32 images, `width` times as wide as the paper's (Howard et al., 2017, arXiv 1704.04861)"""
    return _MobileNet(width, stem, classes, channels)


def mobilenetv2(
    *,
    width: Annotated[float, "above 0", "at most 16"] = 1.0,
    stem: Literal["cifar", "imagenet"] = "cifar",
    classes: int = 10,
    channels: int = 3,
) -> Network:
    """MobileNetV2 for 32x32 images, `width` times as wide as the paper's (Sandler et al., 2018, arXiv 1801.04381)"""
    return _MobileNetV2(width, stem, classes, channels)
