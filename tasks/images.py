"""This file keeps a data set of images on the device as bytes, where batches are cropped, flipped and normalised."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from settings.errors import Refused
from settings.registry import AUGMENTATIONS
from tasks.statistics import statistics
from tasks.streams import Streamed, in_parts, seen
from tasks.unlabelled import Unlabelled
from tasks.views import Views

# means and deviations of channels, as fractions of white, by which torchvision's weights want images normalised: by those of
# ImageNet, and its SSD, whose VGG-16 was trained in Caffe, by the mean alone, in bytes
NORMALISATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "caffe": ((0.48235, 0.45882, 0.40784), (1 / 255, 1 / 255, 1 / 255)),
}


@dataclass
class Images:
    """A set of images: `pixels` are bytes (n, height, width, channels), `labels` are the numbers of their classes, (n,).

    Pixels that do not fit into memory are `Streamed`, and read from their files each time.
    """

    pixels: Tensor | Streamed
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def pick(self, indices) -> "Images":
        return Images(self.pixels[indices], self.labels[indices])

    def part_with(self, indices: Tensor) -> "Images":
        """Take these images out and return them; those that stay move up in place, since a second copy may not fit."""
        taken = self.pick(indices)
        stays = torch.ones(len(self), dtype=torch.bool)
        stays[indices] = False
        left = stays.nonzero().squeeze(1)  # in rising order, so that no image is overwritten before it has moved
        if isinstance(self.pixels, Streamed):
            self.pixels, self.labels = self.pixels[left], self.labels[left]
            return taken
        for start in range(0, len(left), 1000):
            part = left[start : start + 1000]
            self.pixels[start : start + len(part)] = self.pixels[part]
        self.pixels, self.labels = self.pixels[: len(left)], self.labels[left]
        return taken


class Source:
    """A source says where images come from. Each file in tasks/datasets/ has some; a class's name in lower case is a --dataset.

    The keyword-only parameters of a source are the flags that it listens to, by their names: `data_dir`, and where its
    images have no size of their own, `image_size` and `channels`. Other flags about data are refused beside it. `inputs` is the
    shape of an image, (channels, height, width), known before any is read; `augment` is the default of --augment; `notes`
    gathers what the user should know of the files that were read. A source for another task than classification says so in
    the annotation of `task`. A source that listens to `memory` reads its images from files, and may stream them; it is told
    the `device` that they are for, and whether the training images are read anew for each step, `from_files`.
    """

    augment = "crop_flip"

    def __init__(self, inputs: tuple[int, int, int]):
        self.inputs, self.quiet, self.device, self.from_files = inputs, True, "cpu", False
        self.notes: list[str] = []

    def class_count(self) -> int:
        """Return the number of classes without reading the images. Refused if the data is missing."""
        raise NotImplementedError

    def read(self) -> tuple[Images, Images, list[str]]:
        """Return the training images, the test images and the names of the classes. Refused if the data is not usable."""
        raise NotImplementedError

    def read_test(self) -> tuple[Images, list[str]]:
        """Return the test images and the names of their classes; the training images need not exist."""
        _, test, classes = self.read()
        return test, classes

    def read_held_out(self, classes: list[str]) -> Images | None:
        """Return the images that the data set itself holds out, labelled by `classes`; None where it holds out none."""
        return None


class Dataset:
    """A data set has three splits on one device: `train`, `valid` (None if no image is held out) and `test`.

    Beside these it may have images that are `unlabelled`.

    `normalise` says by what pixels are normalised; see `normalisation`.
    """

    def __init__(self, train: Images, valid: Images | None, test: Images, classes: list[str], normalise: str, device):
        self.classes, self.device = classes, torch.device(device)
        mean, std = normalisation(normalise, train.pixels.shape[3], lambda: train.pixels)
        self.mean, self.std = mean.to(device), std.to(device)
        self.train, self.test = self._on_device(train), self._on_device(test)
        self.valid = None if valid is None else self._on_device(valid)
        self.unlabelled: Unlabelled | None = None

    def _on_device(self, images: Images) -> Images:
        return Images(images.pixels.contiguous().to(self.device), images.labels.to(self.device))

    def __str__(self) -> str:
        held = "none" if self.valid is None else len(self.valid)
        train = f"{len(self.train)} training images"
        train += f", {len(self.unlabelled)} unlabelled" if self.unlabelled is not None else ""
        return f"{train}, {held} held out, {len(self.test)} test images, {len(self.classes)} classes"

    @property
    def image_size(self) -> int:
        return self.test.pixels.shape[1]

    @property
    def channels(self) -> int:
        return self.test.pixels.shape[3]

    def normalise(self, pixels: Tensor) -> Tensor:
        """Turn bytes (n, height, width, channels) into floats (n, channels, height, width), in memory as channels_last."""
        return normalised(pixels, self.mean, self.std)

    def normalise_by(self, mean: list[float], std: list[float]) -> None:
        """Normalise by these values from now on, one for each channel, instead of the training images' own."""
        self.mean, self.std = (torch.tensor(values, device=self.device) for values in (mean, std))

    def ordered(self, images: Images, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images of a split in their order, not augmented, as (inputs, labels)."""
        parts = [slice(start, start + batch) for start in range(0, len(images), batch)]
        for pixels, part in zip(in_parts(images.pixels, parts), parts, strict=True):
            yield self.normalise(pixels), images.labels[part]

    def sample(self, batch: int, batches: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield some batches of training images for scoring, not augmented: the same ones at every call."""
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        for chosen in order[: batch * min(batches, self.steps(batch))].to(self.device).split(batch):
            yield from self.ordered(self.train.pick(chosen), batch)  # no more than a batch is copied at a time

    def steps(self, batch: int) -> int:
        """Return the number of full batches of an epoch; the few images that fill none are others in every epoch."""
        return max(len(self.train) // max(batch, 1), 1)

    def epoch(self, batch: int, augment: str, seed: int, epoch: int, part: tuple = (0, 1)) -> Iterator[tuple]:
        """Yield the training batches of an epoch; the order, crops and flips depend on the seed and the epoch alone.

        `part` (i, n) asks for the i-th of n equal parts of every batch. `augment` is an answer to --augment. Once unlabelled
        images have pseudo-labels, some of them follow the labelled ones of each batch, and targets are pairs of both.
        """
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        augmentation, steps = AUGMENTATIONS.get(augment)(), self.steps(batch)
        views = Views(self.train.pixels, torch.randperm(len(self.train), generator=generator), augmentation, generator)
        mixed = self.unlabelled is not None and self.unlabelled.pseudo is not None
        if mixed:
            others, guessed = self.unlabelled.views(steps * batch, augmentation, generator)
            ratio = self.unlabelled.pseudo.ratio
        number, width = part[0], batch // part[1]
        places = [slice(first, first + width) for first in range(number * width, steps * batch, batch)]
        for step, (chosen, pixels) in enumerate(zip(places, seen(views, places, augmentation.from_files), strict=True)):
            first, targets = step * batch + number * width, self.train.labels[views.order[chosen]]
            if mixed:
                more = slice(first * ratio, (first + width) * ratio)
                pixels, targets = torch.cat([pixels, others[more]]), (targets, guessed[more])
            yield self.normalise(pixels), targets

    def keep_labels(self, fraction: float, seed: int) -> None:
        """Leave its label to such a fraction of each class's training images, chosen by the seed; all others are `unlabelled`.

        The normalisation stays that of all of them. Refused if a class is then without a label.
        """
        labelled = hold_out(self.train.labels.cpu(), fraction, seed)[1]
        counts = torch.bincount(self.train.labels.cpu()[labelled], minlength=len(self.classes)).tolist()
        if missing := [name for name, count in zip(self.classes, counts, strict=True) if not count]:
            named = f"{', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}"
            of = f"{len(missing)} of {len(self.classes)} classes"
            raise Refused(f"--labelled {fraction:g} of {len(self.train)} images leaves {of} without a labelled one: {named}")
        others, self.train = self.train, self.train.part_with(labelled)
        self.unlabelled = Unlabelled(others.pixels, others.labels)


def normalisation(name: str, channels: int, pixels: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean and the deviation of each channel, in bytes, that --normalise names.

    "dataset" means those of the training `pixels`; "half" 127.5 for both, half the range of a byte; others are `NORMALISATIONS`.
    """
    if name == "dataset":
        return statistics(pixels())
    if name == "half":
        return torch.full((channels,), 127.5), torch.full((channels,), 127.5)
    mean, std = (255 * torch.tensor(values) for values in NORMALISATIONS[name])
    return mean, std


def normalised(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalise bytes (n, height, width, channels) to floats (n, channels, height, width) by a `mean` and `std` per channel."""
    return ((pixels.float() - mean.to(pixels.device)) / std.to(pixels.device)).permute(0, 3, 1, 2)


def as_bytes(inputs: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Turn normalised floats back into the bytes that they were: the inverse of `normalised`, exact for what it gave."""
    pixels = inputs.permute(0, 2, 3, 1) * std.to(inputs.device) + mean.to(inputs.device)
    return pixels.round().clamp(0, 255).to(torch.uint8).contiguous()


def hold_out(labels: Tensor, fraction: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return the indices of the kept and of the held-out images: so large a fraction of each class, the same in every run.

    Each class gives its share, rounded. If that is less than the fraction of all images, classes whose share was rounded to
    none give one image each, those of the largest share first, until it is reached. Every class keeps an image.
    """
    shuffle = np.random.RandomState(seed)
    members = [shuffle.permutation(np.flatnonzero(labels.numpy() == label)) for label in range(int(labels.max()) + 1)]
    shares = np.array([fraction * len(images) for images in members])
    counts = np.minimum(np.rint(shares), [max(len(images) - 1, 0) for images in members]).astype(int)
    missing = int(np.ceil(fraction * len(labels) - 1e-6)) - counts.sum()
    # equal shares in a random order: not the first classes of the alphabet
    ranked = sorted(shuffle.permutation(len(members)), key=lambda label: -shares[label])
    counts[[label for label in ranked if counts[label] == 0 and len(members[label]) > 1][: max(missing, 0)]] = 1
    held = np.sort(np.concatenate([images[:number] for images, number in zip(members, counts, strict=True)]))
    kept = np.setdiff1d(np.arange(len(labels)), held)
    return torch.from_numpy(kept), torch.from_numpy(held)


def scaled(grey: Tensor, inputs: tuple[int, int, int]) -> Tensor:
    """Scale grey pictures (n, height, width) of values 0 to 255 to bytes of the shape `inputs`, (n, height, width, channels)."""
    channels, *size = inputs
    pixels = grey.float().unsqueeze(1)
    if pixels.shape[2:] != (*size,):
        pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=size[0] < pixels.shape[2])
    return pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).repeat(1, 1, 1, channels)
