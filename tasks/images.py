"""Data sets of images live on the device as bytes; batches are cropped, flipped and normalised there."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from settings.errors import Refused


@dataclass
class Images:
    """Images as bytes, (n, height, width, channels), with labels, (n,)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def pick(self, indices) -> "Images":
        return Images(self.pixels[indices], self.labels[indices])


class Source:
    """Where images come from; a class of a file in tasks/datasets/ is one, and its name in lower case is the --dataset.

    `image_size` and `channels` are asked of sources that can give any; `augment` is the default of --augment.
    """

    task = "classification"
    augment = "crop_flip"

    def __init__(self, directory: Path, *, image_size: int = 32, channels: int = 3):
        self.directory, self.image_size, self.channels = directory, image_size, channels

    def class_count(self) -> int:
        """How many classes there are, found without reading the images. Refused if the data is missing."""
        raise NotImplementedError

    def read(self) -> tuple[Images, Images, list[str]]:
        """Training images, test images and the names of the classes. Refused if they are missing or not usable."""
        raise NotImplementedError


class Dataset:
    """The three splits on one device; `valid` is None if nothing is held out.

    Pixels are normalised by the training images' `mean` and `std`, one a channel, or all by half the range of a byte.
    """

    def __init__(self, train: Images, valid: Images | None, test: Images, classes: list[str], normalise: str, device):
        self.classes, self.device = classes, torch.device(device)
        if normalise == "half":
            mean = std = torch.full((train.pixels.shape[3],), 127.5)
        else:
            mean, std = _statistics(train.pixels)
        self.mean, self.std = mean.to(device), std.to(device)
        self.train, self.test = self._place(train), self._place(test)
        self.valid = None if valid is None else self._place(valid)

    def _place(self, images: Images) -> Images:
        return Images(images.pixels.contiguous().to(self.device), images.labels.to(self.device))

    def __str__(self) -> str:
        held = "none" if self.valid is None else len(self.valid)
        return f"{len(self.train)} training images, {held} held out, {len(self.test)} test images, {len(self.classes)} classes"

    @property
    def image_size(self) -> int:
        return self.test.pixels.shape[1]

    @property
    def channels(self) -> int:
        return self.test.pixels.shape[3]

    def normalise(self, pixels: Tensor) -> Tensor:
        """Bytes (n, height, width, channels) to floats (n, channels, height, width), in memory as channels_last."""
        return normalised(pixels, self.mean, self.std)

    def ordered(self, images: Images, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in their order, not augmented."""
        for start in range(0, len(images), batch):
            yield self.normalise(images.pixels[start : start + batch]), images.labels[start : start + batch]

    def sample(self, batch: int, batches: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Some training images for scoring, not augmented: the same ones at every call."""
        count = batch * min(batches, self.steps(batch))
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))[:count]
        yield from self.ordered(self.train.pick(order.to(self.device)), batch)

    def steps(self, batch: int) -> int:
        """Full batches an epoch has; the few images left over are others in every epoch."""
        return max(len(self.train) // batch, 1)

    def epoch(self, batch: int, augment: str, seed: int, epoch: int, part: tuple = (0, 1)) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch's training batches: the order, crops and flips depend on the seed and the epoch alone.

        part: (i, n) gives the i-th of n equal parts of every batch.

        augment: "crop" (zero padding of an eighth, as 4 pixels of 32), "crop_flip", "none".
        """
        count, size = len(self.train), self.image_size
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(count, generator=generator)
        margin = 0 if augment == "none" else size // 8
        corners = torch.randint(0, 2 * margin + 1, (count, 2), generator=generator)
        flips = torch.rand(count, generator=generator) < (0.5 if augment == "crop_flip" else 0.0)
        order, corners, flips = (part.to(self.device) for part in (order, corners, flips))
        pixels = F.pad(self.train.pixels, (0, 0, margin, margin, margin, margin))
        span = torch.arange(size, device=self.device)
        number, share = part[0], batch // part[1]
        for step in range(self.steps(batch)):
            these = slice(step * batch + number * share, step * batch + (number + 1) * share)
            rows = corners[these, :1] + span
            columns = corners[these, 1:] + torch.where(flips[these, None], span.flip(0), span)
            images = pixels[order[these, None, None], rows[:, :, None], columns[:, None, :]]
            yield self.normalise(images), self.train.labels[order[these]]


def normalised(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Bytes (n, height, width, channels) to floats (n, channels, height, width), each channel by its mean and deviation."""
    return ((pixels.float() - mean.to(pixels.device)) / std.to(pixels.device)).permute(0, 3, 1, 2)


def _statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, of bytes."""
    values = torch.arange(256, dtype=torch.float64)
    channels = pixels.unbind(-1)
    counts = torch.stack([torch.bincount(channel.flatten().int(), minlength=256) for channel in channels]).double()
    counts = counts / counts.sum(1, keepdim=True)
    mean = counts @ values
    variance = counts @ values.square() - mean.square()
    return mean.float(), variance.sqrt().clamp_min(1.0).float()


def hold_out(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Indices of what is kept and of a stratified fraction held out: the same images in every run, whatever its seed."""
    shuffle, held = np.random.RandomState(0), []
    for label in range(int(labels.max()) + 1):
        members = np.flatnonzero(labels.numpy() == label)
        held.append(shuffle.permutation(members)[: round(fraction * len(members))])
    held = np.sort(np.concatenate(held))
    kept = np.setdiff1d(np.arange(len(labels)), held)
    return torch.from_numpy(kept), torch.from_numpy(held)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def read_images(paths: list[str], size: int, channels: int = 3) -> Tensor:
    """Image files as bytes, (n, size, size, channels); see `fit`. Refused, naming them, if some cannot be read."""
    from PIL import Image

    pixels, unreadable = [], []
    for path in paths:
        try:
            with Image.open(path) as image:
                pixels.append(fit(image, size, channels))
        except (OSError, ValueError, SyntaxError):
            unreadable.append(path)
    if unreadable:
        raise Refused(f"{len(unreadable)} unreadable images: {', '.join(unreadable[:5])}")
    return torch.from_numpy(np.stack(pixels))


def fit(image, size: int, channels: int = 3) -> np.ndarray:
    """A PIL image as bytes (size, size, channels): in colour or, for one channel, in grey.

    The shorter side is scaled to `size`, and the centre cropped.
    """
    from PIL import Image, ImageOps

    if image.mode.startswith("I"):  # 16 bits a pixel, which PIL would clip to 8
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    image = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), (size, size), Image.Resampling.BILINEAR)
    return np.array(image).reshape(size, size, channels)
