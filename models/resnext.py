"""This file defines ResNeXts for 32x32 images (Xie et al., 2017, arXiv 1611.05431, section 5.3), whose blocks have groups."""

from typing import Annotated

from torch import Tensor, nn

from models.joint import Joint, linear_decay
from models.layers import Unit, conv_unit, initialise
from models.network import Network


class _Block(nn.Module):
    """A block adds 1x1, 3x3 in groups with the stride, and 1x1 to the identity or, where the shape changes, a projection."""

    def __init__(self, inputs: int, inner: int, filters: int, groups: int, stride: int, drop_path: float):
        super().__init__()
        self.conv1 = conv_unit(inputs, inner, 1)
        self.conv2 = conv_unit(inner, inner, 3, stride, groups=groups)
        self.conv3 = conv_unit(inner, filters, 1, activation=False)
        changes = stride != 1 or inputs != filters
        self.projection = conv_unit(inputs, filters, 1, stride, activation=False) if changes else None
        self.joint = Joint(drop_path=drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return self.joint(self.conv3(self.conv2(self.conv1(x))), x if self.projection is None else self.projection(x))

    def declare(self, network: Network, path: str, source: str, target: str) -> None:
        """Wire the block, which stands at `path` in the network, from the node `source` to the stream `target`."""
        if self.projection is not None:
            network.wire(f"{path}.projection", source, target)
        network.wire(f"{path}.conv1", source, f"{path}.conv1")
        network.wire(f"{path}.conv2", f"{path}.conv1", f"{path}.conv2")
        network.wire(f"{path}.conv3", f"{path}.conv2", target, f"{path}.joint")


class _ResNeXt(Network):
    """Three stages of `blocks` blocks; the first has `groups` groups of `width` filters, each further one twice as wide ones."""

    def __init__(
        self, blocks: int, groups: int, width: int, stem: int, classes: int, channels: int, dropout: float, drop_path: float
    ):
        super().__init__()
        drops = iter(linear_decay(drop_path, 3 * blocks))
        if not (groups >= 1 and width >= 1):
            raise ValueError("at least one group, of at least one filter, is needed")
        self.stem = conv_unit(channels, stem, 3)
        self.wire("stem", "input", "stem")
        inputs, source = stem, "stem"
        for number in range(3):
            inner, filters, target = groups * width * 2**number, 4 * stem * 2**number, f"stage{number + 1}"
            self.add_module(target, nn.Sequential())
            for block in range(blocks):
                stride = 2 if number and not block else 1
                self.get_submodule(target).append(_Block(inputs, inner, filters, groups, stride, next(drops)))
                self.get_submodule(target)[-1].declare(self, f"{target}.{block}", source, target)
                inputs, source = filters, target
        self.classifier = Unit(nn.Linear(inputs, classes), norm=False, activation=False, dropout=dropout, drops_inputs=True)
        self.wire("classifier", source, "output")
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.classifier(x.mean((2, 3)))


def resnext29(
    *,
    groups: int = 8,
    width: int = 64,
    classes: int = 10,
    channels: int = 3,
    dropout: Annotated[float, "below 1"] = 0.0,
    drop_path: Annotated[float, "below 1"] = 0.0,
) -> Network:
    """ResNeXt-29 for 32x32 images, of 8 groups of 64 filters (Xie et al., 2017)"""
    return _ResNeXt(3, groups, width, 64, classes, channels, dropout, drop_path)


def resnext11(
    *,
    groups: int = 4,
    width: int = 8,
    classes: int = 10,
    channels: int = 3,
    dropout: Annotated[float, "below 1"] = 0.0,
    drop_path: Annotated[float, "below 1"] = 0.0,
) -> Network:
    """ResNeXt-29 with one block a stage and a quarter of the widths outside of groups, for short runs (after Xie et al., 2017)"""
    return _ResNeXt(1, groups, width, 16, classes, channels, dropout, drop_path)
