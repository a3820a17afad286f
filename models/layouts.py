"""This file holds the layouts of SSD: its layers and default boxes (Liu et al., 2016, arXiv 1512.02325)."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from models.shapes import told
from settings.schema import Unfit

# filters, and how many convolutions have so many, before each max-pooling of VGG-16
VGG = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


@dataclass(frozen=True)
class Layout:
    """A layout says what SSD adds to VGG-16 for images of so many `pixels`, and which default boxes each source has.

    `maps` are the sides of the maps of its sources. Of `extras` each pair of layers has (bottleneck, width, kernel, stride,
    padding). `ratios` are the aspect ratios besides 1 and their inverses, `scales` fractions of the image's side, `steps`
    pixels from a box to the next.
    """

    pixels: int
    maps: tuple[int, ...]
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
            (38, 19, 10, 5, 3, 1),
            ((256, 512, 3, 2, 1), (128, 256, 3, 2, 1), (128, 256, 3, 1, 0), (128, 256, 3, 1, 0)),
            ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
            (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
            (8, 16, 32, 64, 100, 300),
        ),
        Layout(
            512,
            (64, 32, 16, 8, 4, 2, 1),
            ((256, 512, 3, 2, 1), (128, 256, 3, 2, 1), (128, 256, 3, 2, 1), (128, 256, 3, 2, 1), (128, 256, 4, 1, 1)),
            ((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,)),
            (0.07, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05),
            (8, 16, 32, 64, 128, 256, 512),
        ),
    )
}


@lru_cache
def default_boxes(pixels: int) -> Tensor:
    """Return SSD's default boxes on images of so many pixels, (boxes, 4): left, top, right, bottom as fractions of the side.

    They are in the order of torchvision's generator: map by map, row by row, all of a position together.
    """
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.image_list import ImageList

    layout = LAYOUTS[pixels]
    generator = DefaultBoxGenerator(list(map(list, layout.ratios)), scales=list(layout.scales), steps=list(layout.steps))
    image = ImageList(torch.empty(1, 3, pixels, pixels), [(pixels, pixels)])
    return generator(image, [torch.empty(1, 1, side, side) for side in layout.maps])[0] / pixels


def is_torchvisions(state: dict[str, Tensor]) -> bool:
    """Say whether a state dict is that of torchvision's `ssd300_vgg16`."""
    return any(name.startswith("head.classification_head.") for name in state)


def from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of torchvision's `ssd300_vgg16` in the names of `ssd300_vgg16(norm=False)` here.

    Unfit, a ValueError, for a tensor that it has not.
    """
    first = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21)
    vgg = [f"conv{stage}_{number + 1}" for stage, (_, many) in enumerate(VGG, start=1) for number in range(many)]
    names = {f"backbone.features.{index}": name for index, name in zip(first, vgg, strict=False)}
    names |= {f"backbone.extra.0.{index}": name for index, name in zip((1, 3, 5), vgg[len(first) :], strict=True)}
    names |= {"backbone.extra.0.7.1": "conv6", "backbone.extra.0.7.3": "conv7"}
    names |= {f"backbone.extra.{number}.{2 * half}": f"conv{number + 7}_{half + 1}" for number in range(1, 5) for half in (0, 1)}
    for theirs, ours in (("classification", "classes"), ("regression", "boxes")):
        names |= {f"head.{theirs}_head.module_list.{number}": f"{ours}{number + 1}" for number in range(6)}
    ours = {f"{theirs}.{part}": f"{name}.layer.{part}" for theirs, name in names.items() for part in ("weight", "bias")}
    ours["backbone.scale_weight"] = "scale.layer.weight"
    for name, value in state.items():
        if name not in ours:
            raise Unfit(f"'{name}', {told(value)}, has no counterpart in SSD300")
    values = {ours[name]: value for name, value in state.items()}
    scale = values.get("scale.layer.weight")
    return values if scale is None or scale.dim() != 1 else values | {"scale.layer.weight": scale.view(-1, 1, 1, 1)}
