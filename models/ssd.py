"""This file defines SSD, a detector of one pass, on VGG-16 (Liu et al., 2016, arXiv 1512.02325).

Its outputs are maps, not detections: of each source of features the offsets of default boxes, "boxes1" and on, and the logits
of their classes, "classes1" and on, where class 0 is the background. What becomes of them is the task's part
(tasks/detection.py).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import Unit, initialise
from models.network import Network
from models.numerics import precise
from models.shapes import widened

_VGG = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
# the first units of the paper's phases of pruning; see `Network.begins`
_BEGINS = ("conv4_3", "conv7", "conv8_2")


@dataclass(frozen=True)
class Layout:
    """A layout says what SSD adds to VGG-16 for images of so many `pixels`, and which default boxes each source has.

    Of `extras` each pair of layers has (bottleneck, width, kernel, stride, padding). `ratios` are the aspect ratios besides 1
    and their inverses, `scales` fractions of the image's side, `steps` pixels from a box to the next.
    """

    pixels: int
    extras: tuple[tuple[int, int, int, int, int], ...]
    ratios: tuple[tuple[int, ...], ...]
    scales: tuple[float, ...]
    steps: tuple[int, ...]

    @property
    def boxes(self) -> list[int]:
        """How many default boxes there are at each position, for each source."""
        return [2 + 2 * len(ratios) for ratios in self.ratios]


LAYOUTS = {
    layout.pixels: layout
    for layout in (
        Layout(
            300,
            ((256, 512, 3, 2, 1), (128, 256, 3, 2, 1), (128, 256, 3, 1, 0), (128, 256, 3, 1, 0)),
            ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
            (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
            (8, 16, 32, 64, 100, 300),
        ),
        Layout(
            512,
            ((256, 512, 3, 2, 1), (128, 256, 3, 2, 1), (128, 256, 3, 2, 1), (128, 256, 3, 2, 1), (128, 256, 4, 1, 1)),
            ((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,)),
            (0.07, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05),
            (8, 16, 32, 64, 128, 256, 512),
        ),
    )
}


class _Pool(nn.MaxPool2d):
    """Max-pooling that also takes a tensor without channels."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1]:
            return super().forward(x)
        return super().forward(x.new_zeros(len(x), 1, *x.shape[2:]))[:, :0]


class _Scale(nn.Conv2d):
    """A learned scale for each channel, written as a 1x1 convolution whose filter c reads channel c.

    It begins at the paper's 20 for 512 channels; of fewer, each has a larger part of the length, and the scale is as much less.
    """

    def __init__(self, channels: int):
        super().__init__(channels, channels, 1, groups=channels, bias=False)

    def fresh(self) -> None:
        nn.init.constant_(self.weight, 20.0 * (len(self.weight) / _VGG[3][0]) ** 0.5)


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
        self._filters, self._norm = {"input": channels}, norm
        for stage, (filters, convolutions) in enumerate(_VGG, start=1):
            for number in range(1, convolutions + 1):
                self._add(f"conv{stage}_{number}", widened(filters, width), 3, padding=1)
                if (stage, number) == (4, 3):
                    self.scale = Unit(_Scale(self._filters["conv4_3"]), norm=False, activation=False)
                    self.wire("scale", "conv4_3", "scale", ties="channel")
                    self._filters["scale"] = self._filters["conv4_3"]
            # the third one rounds up, so that maps have 38 x 38 positions; the fifth one keeps the size
            pool = _Pool(3, 1, padding=1) if stage == 5 else _Pool(2, ceil_mode=stage == 3)
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
                self.add_module(
                    f"{kind}{number}", Unit(_Head(self._filters[source], boxes * each), norm=False, activation=False)
                )
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


@lru_cache(maxsize=8)
def default_boxes(pixels: int, sizes: tuple[tuple[int, int], ...]) -> Tensor:
    """Return SSD's default boxes for maps of these sizes, (boxes, 4): left, top, right, bottom as fractions of the side.

    They are in the order of `torchvision`'s generator: map by map, row by row, all of a position together.
    """
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.image_list import ImageList

    layout, maps = LAYOUTS[pixels], len(sizes)
    generator = DefaultBoxGenerator(
        [list(ratios) for ratios in layout.ratios[:maps]], scales=list(layout.scales), steps=list(layout.steps[:maps])
    )
    image = ImageList(torch.empty(1, 3, pixels, pixels), [(pixels, pixels)])
    return generator(image, [torch.empty(1, 1, *size) for size in sizes])[0] / pixels


def from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of torchvision's `ssd300_vgg16` in the names of `ssd300_vgg16(norm=False)` here."""
    first = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21)
    vgg = [f"conv{stage}_{number + 1}" for stage, (_, many) in enumerate(_VGG, start=1) for number in range(many)]
    names = {f"backbone.features.{index}": name for index, name in zip(first, vgg, strict=False)}
    names |= {f"backbone.extra.0.{index}": name for index, name in zip((1, 3, 5), vgg[len(first) :], strict=True)}
    names |= {"backbone.extra.0.7.1": "conv6", "backbone.extra.0.7.3": "conv7"}
    names |= {f"backbone.extra.{number}.{2 * half}": f"conv{number + 7}_{half + 1}" for number in range(1, 5) for half in (0, 1)}
    for theirs, ours in (("classification", "classes"), ("regression", "boxes")):
        names |= {f"head.{theirs}_head.module_list.{number}": f"{ours}{number + 1}" for number in range(6)}
    values = {"scale.layer.weight": state["backbone.scale_weight"].view(-1, 1, 1, 1)}
    for theirs, ours in names.items():
        values |= {f"{ours}.layer.{part}": state[f"{theirs}.{part}"] for part in ("weight", "bias")}
    return values
