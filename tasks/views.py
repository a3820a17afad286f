"""This file makes the views of images that training sees: cropped, mirrored, and changed by random operations, as bytes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """How training images are changed at random: cropped, mirrored, then by `number` operations of a `magnitude`, 0 to 30.

    With `boxes` they are pictures with boxes, which are changed together (tasks/boxed.py). With a `scale` each is a part of
    random shape and place, of at least this fraction of the image, stretched to its size, and every other one mirrored; with
    `from_files` a part of the whole picture, which is read from its file each time.
    """

    crops: bool = False
    flips: bool = False
    number: int = 0
    magnitude: int = 0
    boxes: bool = False
    scale: float = 0.0
    from_files: bool = False


class Views:
    """A view of each of some images, `pixels` (n, height, width, channels), in this `order`, (views,) of their numbers.

    What is random is drawn at once, by a generator on the CPU, so that a view does not depend on which others are made.
    """

    def __init__(self, pixels: Tensor, order: Tensor, augmentation: Augmentation, generator: torch.Generator):
        size, device, count = pixels.shape[1], pixels.device, len(order)
        margin = size // 8 if augmentation.crops else 0  # of zeros around the images, which so need not be copied with it
        corners = torch.randint(0, 2 * margin + 1, (count, 2), generator=generator)
        flips = torch.rand(count, generator=generator) < (0.5 if augmentation.flips else 0.0)
        self.pixels, self.size = pixels, size
        self.order, self.corners, self.flips = (part.to(device) for part in (order, corners, flips))
        self.span = torch.arange(size, device=device) - margin
        self.seeds, self.scale = None, augmentation.scale
        if augmentation.scale:
            self.seeds = torch.randint(2**62, (count,), generator=generator)
        self.operations = None
        if augmentation.number:
            self.operations = RandomOperations(count, augmentation.number, augmentation.magnitude, generator)

    def __getitem__(self, chosen: slice) -> Tensor:
        """Return these views as bytes (views, height, width, channels)."""
        return self.of(self.pixels, self.order[chosen], chosen)

    def of(self, pixels: Tensor, numbers: Tensor, chosen: slice) -> Tensor:
        """Return these views of the images of these `numbers` in `pixels`, which may be other ones than all that there are."""
        if self.scale:
            return torch.stack(
                [self._part(pixels[number], seed) for number, seed in zip(numbers, self.seeds[chosen], strict=True)]
            )
        rows = self.corners[chosen, :1] + self.span
        columns = self.corners[chosen, 1:] + torch.where(self.flips[chosen, None], self.span.flip(0), self.span)
        inside = _inside(rows, self.size)[:, :, None] & _inside(columns, self.size)[:, None, :]
        rows, columns = (positions.clamp(0, self.size - 1) for positions in (rows, columns))
        crops = pixels[numbers[:, None, None], rows[:, :, None], columns[:, None, :]]
        crops *= inside[..., None]
        return crops if self.operations is None else self.operations.apply(crops, chosen)

    def _part(self, image: Tensor, seed: Tensor) -> Tensor:
        """Return a random part of an image, by a seed of its own."""
        with seeded(int(seed)):
            return resized(image, self.size, self.scale)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within this block torch draws on the CPU by a seed; its random state is then as it was before."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def resized(image: Tensor, size: int, scale: float) -> Tensor:
    """Return a random part of bytes (height, width, channels) as (size, size, channels), by torch's random state.

    Szegedy et al., 2015 (arXiv 1409.4842): the part is at least the fraction `scale` of the image, and 3/4 to 4/3 times as wide
    as high; half of them are mirrored.
    """
    return _cropped(size, scale)(image.permute(2, 0, 1)).permute(1, 2, 0).contiguous()


@cache
def _cropped(size: int, scale: float):
    """Return what makes of bytes (channels, height, width) a random part of them."""
    from torchvision.transforms import v2

    return v2.Compose([v2.RandomResizedCrop(size, (scale, 1.0), antialias=True), v2.RandomHorizontalFlip()])


class RandomOperations:
    """What RandAugment (Cubuk et al., 2020, arXiv 1909.13719) does to each of `count` images: `number` operations, one by one.

    Each image has operations of its own, and a sign of its own where there are two. Images of the same operation are changed
    together, so that a batch takes a few calls on its device.
    """

    def __init__(self, count: int, number: int, magnitude: int, generator: torch.Generator):
        self.transform = _transform(number, magnitude)
        self.kinds = torch.randint(0, len(self.transform.names), (count, number), generator=generator)
        self.signs = torch.rand(count, number, generator=generator) < 0.5

    def apply(self, images: Tensor, chosen: slice) -> Tensor:
        """Change bytes (images, height, width, channels), of which the operations are those of the numbers `chosen`."""
        images = images.permute(0, 3, 1, 2)
        for kinds, signs in zip(self.kinds[chosen].unbind(1), self.signs[chosen].unbind(1), strict=True):
            for number, negative in torch.stack([kinds, signs], 1).unique(dim=0).tolist():
                where = ((kinds == number) & (signs == bool(negative))).nonzero().squeeze(1).to(images.device)
                images[where] = self.transform.change(images[where], number, bool(negative))
        return images.permute(0, 2, 3, 1)


@cache
def _transform(number: int, magnitude: int):
    """Return torchvision's RandAugment, with a method that carries out one operation on a batch."""
    from torchvision.transforms.v2 import RandAugment

    class PerImage(RandAugment):
        """Instead of drawing operations for a whole batch, it is told which one to carry out."""

        @property
        def names(self) -> list[str]:
            return list(self._AUGMENTATION_SPACE)

        def change(self, images: Tensor, kind: int, negative: bool) -> Tensor:
            """Carry out the operation of this number on bytes (images, channels, height, width)."""
            name = self.names[kind]
            magnitudes, signed = self._AUGMENTATION_SPACE[name]
            values = magnitudes(self.num_magnitude_bins, *images.shape[-2:])
            strength = 0.0 if values is None else float(values[self.magnitude])
            strength = -strength if negative and signed else strength
            return self._apply_image_or_video_transform(images, name, strength, self.interpolation, self._fill)

    return PerImage(number, magnitude)


def _inside(positions: Tensor, size: int) -> Tensor:
    """Say of rows or columns whether they are of the image, not of the margin around it."""
    return (positions >= 0) & (positions < size)
