"""This file defines the ImageNet ResNets (He et al., 2016, arXiv 1512.03385, table 1) for 32x32 images.

Their stem is a 3x3 convolution without max-pooling. `dropout` is of the features that the classifier reads, `drop_path` the
rate at which the last branch is dropped as a whole.
"""

from typing import Annotated

from torch import Tensor, nn

from models.joint import Joint, linear_decay
from models.layers import Unit, conv_unit, initialise
from models.network import Network


class _Basic(nn.Module):
    """A basic branch has two 3x3 convolutions."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = conv_unit(inputs, width, 3, stride)
        self.conv2 = conv_unit(width, width, 3, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class _Bottleneck(nn.Module):
    """A bottleneck branch has a 1x1 convolution, a 3x3 one with the stride, and a 1x1 one to four times the width."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = conv_unit(inputs, width, 1)
        self.conv2 = conv_unit(width, width, 3, stride)
        self.conv3 = conv_unit(width, 4 * width, 1, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x)))


class _Block(nn.Module):
    """A block adds a branch to the identity or, where the shape changes, to a 1x1 projection."""

    def __init__(self, branch: type, inputs: int, width: int, stride: int, drop_path: float):
        super().__init__()
        filters = branch.expansion * width
        self.branch = branch(inputs, width, stride)
        changes = stride != 1 or inputs != filters
        self.projection = conv_unit(inputs, filters, 1, stride, activation=False) if changes else None
        self.joint = Joint(drop_path=drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return self.joint(self.branch(x), x if self.projection is None else self.projection(x))

    def declare(self, network: Network, path: str, source: str, target: str) -> None:
        """Wire the block, which stands at `path` in the network, from the node `source` to the stream `target`."""
        if self.projection is not None:
            network.wire(f"{path}.projection", source, target)
        convolutions = [f"{path}.branch.{name}" for name, _ in self.branch.named_children()]
        reads = source
        for convolution in convolutions:
            last = convolution == convolutions[-1]
            writes = target if last else convolution
            network.wire(convolution, reads, writes, f"{path}.joint" if last else None)
            reads = writes


class _ResNet(Network):
    def __init__(self, branch: type, blocks: tuple, classes: int, channels: int, dropout: float, drop_path: float):
        super().__init__()
        drops = iter(linear_decay(drop_path, sum(blocks)))
        self.stem = conv_unit(channels, 64, 3)
        # the first stage of a bottleneck network widens the stem's stream, so the stem writes one of its own
        self.wire("stem", "input", "stem" if branch.expansion > 1 else "stage1")
        inputs, source = 64, self.links[-1].target
        for number, (repeats, width) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True), start=1):
            stage, target = nn.Sequential(), f"stage{number}"
            self.add_module(target, stage)
            for block in range(repeats):
                stride = 2 if number > 1 and block == 0 else 1
                stage.append(_Block(branch, inputs, width, stride, next(drops)))
                stage[-1].declare(self, f"{target}.{block}", source, target)
                inputs, source = branch.expansion * width, target
        self.classifier = Unit(nn.Linear(inputs, classes), norm=False, activation=False, dropout=dropout, drops_inputs=True)
        self.wire("classifier", source, "output")
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage4(self.stage3(self.stage2(self.stage1(self.stem(x)))))
        return self.classifier(x.mean((2, 3)))


def resnet18(
    *,
    classes: int = 10,
    channels: int = 3,
    dropout: Annotated[float, "below 1"] = 0.0,
    drop_path: Annotated[float, "below 1"] = 0.0,
) -> Network:
    """ResNet-18 with a stem for 32x32 images (He et al., 2016)"""
    return _ResNet(_Basic, (2, 2, 2, 2), classes, channels, dropout, drop_path)


def resnet34(
    *,
    classes: int = 10,
    channels: int = 3,
    dropout: Annotated[float, "below 1"] = 0.0,
    drop_path: Annotated[float, "below 1"] = 0.0,
) -> Network:
    """ResNet-34 with a stem for 32x32 images (He et al., 2016)"""
    return _ResNet(_Basic, (3, 4, 6, 3), classes, channels, dropout, drop_path)


def resnet50(
    *,
    classes: int = 10,
    channels: int = 3,
    dropout: Annotated[float, "below 1"] = 0.0,
    drop_path: Annotated[float, "below 1"] = 0.0,
) -> Network:
    """ResNet-50 with a stem for 32x32 images (He et al., 2016)"""
    return _ResNet(_Bottleneck, (3, 4, 6, 3), classes, channels, dropout, drop_path)


def resnet101(
    *,
    classes: int = 10,
    channels: int = 3,
    dropout: Annotated[float, "below 1"] = 0.0,
    drop_path: Annotated[float, "below 1"] = 0.0,
) -> Network:
    """ResNet-101 with a stem for 32x32 images (He et al., 2016)"""
    return _ResNet(_Bottleneck, (3, 4, 23, 3), classes, channels, dropout, drop_path)


def resnet152(
    *,
    classes: int = 10,
    channels: int = 3,
    dropout: Annotated[float, "below 1"] = 0.0,
    drop_path: Annotated[float, "below 1"] = 0.0,
) -> Network:
    """ResNet-152 with a stem for 32x32 images (He et al., 2016)"""
    return _ResNet(_Bottleneck, (3, 8, 36, 3), classes, channels, dropout, drop_path)
