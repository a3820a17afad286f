"""This file defines the ResNets for 32x32 images of He et al., 2016 (arXiv 1512.03385), section 4.2.

They have 6n + 2 layers of 16, 32 and 64 filters, or of `widen` times as many. `dropout` is of the features that the classifier
reads, `drop_path` the rate at which the last branch is dropped as a whole.
"""

from typing import Annotated, Literal

from torch import Tensor, nn

from models.joint import Joint, linear_decay, subsample
from models.layers import Unit, conv_unit, initialise
from models.network import Network
from models.shapes import widened


class _Block(nn.Module):
    """A block adds two 3x3 convolutions to a shortcut: the identity, a 1x1 projection, or subsampling with zero channels."""

    def __init__(self, inputs: int, filters: int, stride: int, shortcut: str, drop_path: float):
        super().__init__()
        self.conv1 = conv_unit(inputs, filters, 3, stride)
        self.conv2 = conv_unit(filters, filters, 3, activation=False)
        self.joint, self.stride = Joint(drop_path=drop_path), stride
        changes = stride != 1 or inputs != filters
        self.projection = (
            conv_unit(inputs, filters, 1, stride, activation=False) if changes and shortcut == "projection" else None
        )
        self.pads = changes and shortcut == "pad"

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv2(self.conv1(x))
        if self.projection is not None:
            x = self.projection(x)
        elif self.pads:
            x = subsample(x, self.stride)
        return self.joint(branch, x)

    def declare(self, network: Network, path: str, source: str, target: str) -> None:
        """Wire the block, which stands at `path` in the network, from the node `source` to the stream `target`."""
        network.wire(f"{path}.conv1", source, f"{path}.conv1")
        if source != target:
            network.wire(f"{path}.projection" if self.projection is not None else None, source, target)
        network.wire(f"{path}.conv2", f"{path}.conv1", target, f"{path}.joint")


class _ResNetCifar(Network):
    def __init__(self, blocks: int, classes: int, channels: int, shortcut: str, widen: float, dropout: float, drop_path: float):
        super().__init__()
        drops = iter(linear_decay(drop_path, 3 * blocks))
        widths = [widened(filters, widen) for filters in (16, 32, 64)]
        self.stem = conv_unit(channels, widths[0], 3)
        self.wire("stem", "input", "stage1")
        inputs, source = widths[0], "stage1"
        for number, filters in enumerate(widths, start=1):
            stage, target = nn.Sequential(), f"stage{number}"
            self.add_module(target, stage)
            for block in range(blocks):
                stride = 2 if number > 1 and block == 0 else 1
                stage.append(_Block(inputs, filters, stride, shortcut, next(drops)))
                stage[-1].declare(self, f"{target}.{block}", source, target)
                inputs, source = filters, target
        self.classifier = Unit(nn.Linear(inputs, classes), norm=False, activation=False, dropout=dropout, drops_inputs=True)
        self.wire("classifier", source, "output")
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.classifier(x.mean((2, 3)))


def resnet20(
    *,
    classes: int = 10,
    channels: int = 3,
    shortcut: Literal["projection", "pad"] = "projection",
    widen: Annotated[float, "above 0", "at most 16"] = 1.0,
    dropout: Annotated[float, "below 1"] = 0.0,
    drop_path: Annotated[float, "below 1"] = 0.0,
) -> Network:
    """ResNet-20 for 32x32 images (He et al., 2016)"""
    return _ResNetCifar(3, classes, channels, shortcut, widen, dropout, drop_path)


def resnet32(
    *,
    classes: int = 10,
    channels: int = 3,
    shortcut: Literal["projection", "pad"] = "projection",
    widen: Annotated[float, "above 0", "at most 16"] = 1.0,
    dropout: Annotated[float, "below 1"] = 0.0,
    drop_path: Annotated[float, "below 1"] = 0.0,
) -> Network:
    """ResNet-32 for 32x32 images (He et al., 2016)"""
    return _ResNetCifar(5, classes, channels, shortcut, widen, dropout, drop_path)


def resnet44(
    *,
    classes: int = 10,
    channels: int = 3,
    shortcut: Literal["projection", "pad"] = "projection",
    widen: Annotated[float, "above 0", "at most 16"] = 1.0,
    dropout: Annotated[float, "below 1"] = 0.0,
    drop_path: Annotated[float, "below 1"] = 0.0,
) -> Network:
    """ResNet-44 for 32x32 images (He et al., 2016)"""
    return _ResNetCifar(7, classes, channels, shortcut, widen, dropout, drop_path)


def resnet56(
    *,
    classes: int = 10,
    channels: int = 3,
    shortcut: Literal["projection", "pad"] = "projection",
    widen: Annotated[float, "above 0", "at most 16"] = 1.0,
    dropout: Annotated[float, "below 1"] = 0.0,
    drop_path: Annotated[float, "below 1"] = 0.0,
) -> Network:
    """ResNet-56 for 32x32 images (He et al., 2016)"""
    return _ResNetCifar(9, classes, channels, shortcut, widen, dropout, drop_path)


def resnet110(
    *,
    classes: int = 10,
    channels: int = 3,
    shortcut: Literal["projection", "pad"] = "projection",
    widen: Annotated[float, "above 0", "at most 16"] = 1.0,
    dropout: Annotated[float, "below 1"] = 0.0,
    drop_path: Annotated[float, "below 1"] = 0.0,
) -> Network:
    """ResNet-110 for 32x32 images (He et al., 2016)"""
    return _ResNetCifar(18, classes, channels, shortcut, widen, dropout, drop_path)
