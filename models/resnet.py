"""This file defines the ResNets of He et al., 2016 (arXiv 1512.03385, table 1), and a ResNeXt, for images of any size.

With stem='cifar', for 32x32 images, the stem is a 3x3 convolution without max-pooling. With stem='imagenet' it is the paper's,
a 7x7 convolution with stride 2 and 3x3 max-pooling by 2. The stride of a bottleneck is that of its 3x3 convolution, as in
torchvision's networks, whose parameters these have. `dropout` is of the features that the classifier reads, `drop_path` the
rate at which the last branch is dropped as a whole.
"""

from typing import Annotated, Literal

from torch import Tensor, nn

from models.joint import Joint, linear_decay
from models.layers import Unit, conv_unit, initialise
from models.network import Network
from models.pooling import Pool


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
    """A bottleneck branch has a 1x1 convolution, a 3x3 one with the stride, and a 1x1 one to four times the width.

    The 3x3 convolution has so many `groups`, of `group_width` filters each where the stage's width is 64.
    """

    expansion, groups, group_width = 4, 1, 64

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        inner = width * self.group_width // 64 * self.groups
        self.conv1 = conv_unit(inputs, inner, 1)
        self.conv2 = conv_unit(inner, inner, 3, stride, groups=self.groups)
        self.conv3 = conv_unit(inner, 4 * width, 1, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x)))


class _Grouped(_Bottleneck):
    """The branch of ResNeXt-50 (32x4d) has 32 groups of 4 filters in its first stage."""

    groups, group_width = 32, 4


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
    def __init__(self, branch: type, blocks: tuple, stem: str, classes: int, channels: int, dropout: float, drop_path: float):
        super().__init__()
        drops = iter(linear_decay(drop_path, sum(blocks)))
        large = stem == "imagenet"
        self.stem = conv_unit(channels, 64, 7, 2) if large else conv_unit(channels, 64, 3)
        self.pool = Pool(3, 2, 1) if large else nn.Identity()
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
        x = self.stage4(self.stage3(self.stage2(self.stage1(self.pool(self.stem(x))))))
        return self.classifier(x.mean((2, 3)))


def resnet18(
    *,
    stem: Literal["cifar", "imagenet"] = "cifar",
    classes: int = 10,
    channels: int = 3,
    dropout: Annotated[float, "below 1"] = 0.0,
    drop_path: Annotated[float, "below 1"] = 0.0,
) -> Network:
    """ResNet-18 for 32x32 images or, with stem='imagenet', for larger ones (He et al., 2016)"""
    return _ResNet(_Basic, (2, 2, 2, 2), stem, classes, channels, dropout, drop_path)


def resnet34(
    *,
    stem: Literal["cifar", "imagenet"] = "cifar",
    classes: int = 10,
    channels: int = 3,
    dropout: Annotated[float, "below 1"] = 0.0,
    drop_path: Annotated[float, "below 1"] = 0.0,
) -> Network:
    """ResNet-34 for 32x32 images or, with stem='imagenet', for larger ones (He et al., 2016)"""
    return _ResNet(_Basic, (3, 4, 6, 3), stem, classes, channels, dropout, drop_path)


def resnet50(
    *,
    stem: Literal["cifar", "imagenet"] = "cifar",
    classes: int = 10,
    channels: int = 3,
    dropout: Annotated[float, "below 1"] = 0.0,
    drop_path: Annotated[float, "below 1"] = 0.0,
) -> Network:
    """ResNet-50 for 32x32 images or, with stem='imagenet', for larger ones (He et al., 2016)"""
    return _ResNet(_Bottleneck, (3, 4, 6, 3), stem, classes, channels, dropout, drop_path)


def resnet101(
    *,
    stem: Literal["cifar", "imagenet"] = "cifar",
    classes: int = 10,
    channels: int = 3,
    dropout: Annotated[float, "below 1"] = 0.0,
    drop_path: Annotated[float, "below 1"] = 0.0,
) -> Network:
    """ResNet-101 for 32x32 images or, with stem='imagenet', for larger ones (He et al., 2016)"""
    return _ResNet(_Bottleneck, (3, 4, 23, 3), stem, classes, channels, dropout, drop_path)


def resnet152(
    *,
    stem: Literal["cifar", "imagenet"] = "cifar",
    classes: int = 10,
    channels: int = 3,
    dropout: Annotated[float, "below 1"] = 0.0,
    drop_path: Annotated[float, "below 1"] = 0.0,
) -> Network:
    """ResNet-152 for 32x32 images or, with stem='imagenet', for larger ones (He et al., 2016)"""
    return _ResNet(_Bottleneck, (3, 8, 36, 3), stem, classes, channels, dropout, drop_path)


def resnext50(
    *,
    stem: Literal["cifar", "imagenet"] = "cifar",
    classes: int = 10,
    channels: int = 3,
    dropout: Annotated[float, "below 1"] = 0.0,
    drop_path: Annotated[float, "below 1"] = 0.0,
) -> Network:
    """ResNeXt-50 of 32 groups of 4 filters, with the stem of a ResNet (Xie et al., 2017, arXiv 1611.05431)"""
    return _ResNet(_Grouped, (3, 4, 6, 3), stem, classes, channels, dropout, drop_path)
