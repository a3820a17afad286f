"""This file holds pictures with boxes, in memory or as files, and the augmentation that SSD trains with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as Items
from torchvision import tv_tensors
from torchvision.transforms import v2

from settings.errors import Refused
from settings.registry import AUGMENTATIONS
from tasks.boxes import CROWD
from tasks.pictures import read_picture, read_pictures
from tasks.streams import loaded
from tasks.views import seeded

# of the machine's memory, what decoded pictures may take; more are read from their files at every step
SHARE = 0.25
# the colour around a picture that is zoomed out, about the mean of photographs
GROUND = (123, 117, 104)


@dataclass
class Boxed:
    """Pictures with their boxes.

    `paths` are their files, `sizes` (width, height) of each, `targets` rows (boxes, 6) as in tasks/boxes.py, by picture.
    `held` are the decoded pictures, (height, width, 3) bytes each, or None; `stretched` all of them as squares of one size, or
    None. What is None is read from the files each time.
    """

    paths: list[str]
    sizes: list[tuple[int, int]]
    targets: list[Tensor]
    held: list[np.ndarray] | None = None
    stretched: Tensor | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def pick(self, indices) -> "Boxed":
        """Return some of the pictures, by a slice or by indices."""
        chosen = range(len(self))[indices] if isinstance(indices, slice) else [int(index) for index in indices]
        held = None if self.held is None else [self.held[index] for index in chosen]
        stretched = None if self.stretched is None else self.stretched[list(chosen)]
        lists = ([part[index] for index in chosen] for part in (self.paths, self.sizes, self.targets))
        return Boxed(*lists, held, stretched)

    @property
    def bytes(self) -> int:
        """How much memory the decoded pictures take."""
        return sum(3 * width * height for width, height in self.sizes)

    def hold(self) -> None:
        """Decode all pictures into memory. Refused, naming them, where some cannot be decoded."""
        self.held = [self._read(index) for index in range(len(self))]

    def picture(self, index: int) -> np.ndarray:
        """Return one picture, (height, width, 3) bytes. Refused if it cannot be decoded."""
        return self._read(index) if self.held is None else self.held[index]

    def _read(self, index: int) -> np.ndarray:
        try:
            return read_picture(self.paths[index], None)
        except ValueError as error:
            raise Refused(f"1 unreadable images: {error}") from None

    def squares(self, size: int, part: slice = slice(None)) -> Tensor:
        """Return pictures stretched to squares of so many pixels, bytes (n, size, size, 3)."""
        if self.stretched is not None:
            return self.stretched[part]
        return read_pictures(self.paths[part], size, fit="stretch")


def padded(rows: Tensor, most: int) -> Tensor:
    """Fill rows of targets up with empty ones, to (most, 6)."""
    return torch.cat([rows, rows.new_zeros(most - len(rows), 6)])


class Augmented(Items):
    """The training pictures of one epoch, as SSD sees them: an item is the bytes (size, size, 3) and the targets (most, 6).

    What becomes of a picture depends on the seed, the epoch and its number alone, and no random state changes. With
    `augment` "none" it is only stretched.
    """

    def __init__(self, pictures: Boxed, order: list[int], size: int, most: int, augment: str, seed: int, epoch: int):
        self.pictures, self.order, self.size, self.most = pictures, order, size, most
        self.augment, self.seed, self.epoch = augment, seed, epoch

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        index = self.order[place]
        image = torch.from_numpy(self.pictures.picture(index)).permute(2, 0, 1)
        rows = self.pictures.targets[index]
        rows = rows[rows[:, 5] != CROWD]
        height, width = image.shape[1:]
        sides = torch.tensor([width, height, width, height])
        boxes = tv_tensors.BoundingBoxes(rows[:, :4] * sides, format="XYXY", canvas_size=(height, width))
        with seeded(((self.seed * 1_000_003 + self.epoch) * 1_000_003 + index) % 2**63):
            image, boxes, marks = transforms(self.augment, self.size, len(rows) > 0)(tv_tensors.Image(image), boxes, rows[:, 4:])
        rows = torch.cat([boxes.as_subclass(Tensor) / self.size, marks], 1)
        return image.as_subclass(Tensor).permute(1, 2, 0).contiguous(), padded(rows, self.most)


def transforms(augment: str, size: int, has_boxes: bool) -> Callable:
    """Return what maps an image, its boxes and the marks of these to those that are trained on.

    "ssd" is the augmentation of Liu et al., 2016, section 3.6: colours are distorted, half of the pictures are zoomed out, a
    part is cut out that has at least one box (none where there is no box), half are mirrored. Boxes of less than a pixel go.
    """
    steps = []
    if AUGMENTATIONS.get(augment)().boxes:
        steps = [v2.RandomPhotometricDistort(), v2.RandomZoomOut(fill={tv_tensors.Image: GROUND, "others": 0})]
        steps += [v2.RandomIoUCrop()] if has_boxes else []
        steps += [v2.RandomHorizontalFlip()]
    return v2.Compose([*steps, v2.Resize((size, size)), v2.SanitizeBoundingBoxes(labels_getter=lambda inputs: inputs[2])])


def in_batches(items: Items, batch: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of items on a device. Beside an accelerator, other processes make them while it trains."""
    for images, targets in loaded(items, device, batch_size=batch):
        yield images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
