"""This file defines SSD, a detector of one pass, on VGG-16 (Liu et al., 2016, arXiv 1512.02325).

Its outputs are maps, not detections: of each source of features the offsets of default boxes, "boxes1" and on, and the logits
of their classes, "classes1" and on, where class 0 is the background. What becomes of them is the task's part
(tasks/detection.py).
"""

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import Unit, initialise
from models.layouts import LAYOUTS, VGG, Layout
from models.network import Network
from models.numerics import precise
from models.pooling import Pool
from models.shapes import widened

# the first units of the paper's phases of pruning; see `Network.begins`
_BEGINS = ("conv4_3", "conv7", "conv8_2")


class _Scale(nn.Conv2d):
    """A learned scale for each channel, written as a 1x1 convolution whose filter c reads channel c.

    It begins at the paper's 20 for 512 channels; of fewer, each has a larger part of the length, and the scale is as much less.
    """

    def __init__(self, channels: int):
        super().__init__(channels, channels, 1, groups=channels, bias=False)

    def fresh(self) -> None:
        nn.init.constant_(self.weight, 20.0 * (len(self.weight) / VGG[3][0]) ** 0.5)


class _Head(nn.Conv2d):
    """A convolution that gives an output; it begins as Glorot and Bengio, 2010, draw weights, so that outputs are small."""

    def __init__(self, channels: int, outputs: int):
        super().__init__(channels, outputs, 3, padding=1)

    def fresh(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)


class _SSD(Network):
    """SSD with the first `maps` of its sources of features; what lies behind the last one is left out."""

    begins = _BEGINS

    def __init__(self, layout: Layout, classes: int, channels: int, width: float, norm: bool, maps: int):
        super().__init__()
        self.chain, self.sources = [], ["scale", "conv7"]
        self.outputs = tuple(f"{kind}{number + 1}" for kind in ("boxes", "classes") for number in range(maps))
        self.placing = self.outputs[:maps]
        self._filters, self._norm = {"input": channels}, norm
        for stage, (filters, convolutions) in enumerate(VGG, start=1):
            for number in range(1, convolutions + 1):
                self._add(f"conv{stage}_{number}", widened(filters, width), 3, padding=1)
                if (stage, number) == (4, 3):
                    self.scale = Unit(_Scale(self._filters["conv4_3"]), norm=False, activation=False)
                    self.wire("scale", "conv4_3", "scale", ties="channel")
                    self._filters["scale"] = self._filters["conv4_3"]
            # the third one rounds up, so that maps have 38 x 38 positions; the fifth one keeps the size
            pool = Pool(3, 1, padding=1) if stage == 5 else Pool(2, ceil_mode=stage == 3)
            if maps > 1 or stage < 4:
                self._append(f"pool{stage}", pool)
            if maps == 1 and stage == 4:
                break
        if maps > 1:
            self._add("conv6", widened(1024, width), 3, padding=6, dilation=6)
            self._add("conv7", widened(1024, width), 1)
        for number, (inner, outer, kernel, stride, padding) in enumerate(layout.extras[: max(maps - 2, 0)], start=8):
            self._add(f"conv{number}_1", widened(inner, width), 1)
            self._add(f"conv{number}_2", widened(outer, width), kernel, stride=stride, padding=padding)
            self.sources.append(f"conv{number}_2")
        self.sources = self.sources[:maps]
        for kind, each in (("boxes", 4), ("classes", classes + 1)):
            for number, (source, boxes) in enumerate(zip(self.sources, layout.boxes, strict=False), start=1):
                self.add_module(f"{kind}{number}", Unit(_Head(self._filters[source], boxes * each), norm=False, activation=False))
                self.wire(f"{kind}{number}", source, f"{kind}{number}")
        initialise(self)

    def _append(self, name: str, module: nn.Module) -> None:
        self.add_module(name, module)
        self.chain.append(name)

    def _add(self, name: str, filters: int, kernel: int, **geometry) -> None:
        """Append a convolution that reads the last one."""
        source = next((link.target for link in reversed(self.links) if link.ties is None), "input")
        layer = nn.Conv2d(self._filters[source], filters, kernel, bias=not self._norm, **geometry)
        self._append(name, Unit(layer, norm=self._norm))
        self.wire(name, source, name)
        self._filters[name] = filters

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = []
        for name in self.chain:
            x = self.get_submodule(name)(x)
            if name == "conv4_3":
                # masks are on conv4_3, so that the length is that of the channels that stay
                features.append(self.scale(F.normalize(precise(x))))
            elif name in self.sources:
                features.append(x)
        pairs = [(f"{kind}{number}", x) for kind in ("boxes", "classes") for number, x in enumerate(features, start=1)]
        return tuple(self.get_submodule(name)(x) for name, x in pairs)


def ssd300_vgg16(
    *,
    classes: int = 20,
    channels: int = 3,
    width: Annotated[float, "above 0", "at most 16"] = 1.0,
    norm: bool = True,
    maps: Annotated[int, "at least 1", "at most 6"] = 6,
) -> Annotated[Network, "task: detection", "pixels: 300"]:
    """SSD300 on VGG-16, a detector for images of 300x300 (Liu et al., 2016)"""
    return _SSD(LAYOUTS[300], classes, channels, width, norm, maps)


def ssd512_vgg16(
    *,
    classes: int = 20,
    channels: int = 3,
    width: Annotated[float, "above 0", "at most 16"] = 1.0,
    norm: bool = True,
    maps: Annotated[int, "at least 1", "at most 7"] = 7,
) -> Annotated[Network, "task: detection", "pixels: 512"]:
    """SSD512 on VGG-16, a detector for images of 512x512 (Liu et al., 2016)"""
    return _SSD(LAYOUTS[512], classes, channels, width, norm, maps)
