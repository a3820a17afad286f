"""Data sets that live on the device as bytes, and batches that are cropped, flipped and normalised there."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class DataError(Exception):
    """A data set that is not there or not usable; the message is one line for the user."""


@dataclass
class Images:
    """Images as bytes, (n, height, width, 3), with labels, (n,)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def pick(self, indices) -> "Images":
        return Images(self.pixels[indices], self.labels[indices])


class Dataset:
    """The three splits on one device; `valid` is None if nothing is held out. Normalised by channel `mean` and `std`."""

    def __init__(self, train: Images, valid: Images | None, test: Images, classes: list[str], normalise: str, device):
        self.classes, self.device = classes, torch.device(device)
        if normalise == "half":
            mean = std = torch.full((3,), 127.5)
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

    def normalise(self, pixels: Tensor) -> Tensor:
        """Bytes (n, height, width, 3) to floats (n, 3, height, width), which lie in memory as channels_last."""
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
    """Bytes (n, height, width, 3) to floats (n, 3, height, width), by channel."""
    return ((pixels.float() - mean.to(pixels.device)) / std.to(pixels.device)).permute(0, 3, 1, 2)


def _statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, of bytes."""
    values = torch.arange(256, dtype=torch.float64)
    counts = torch.stack([torch.bincount(pixels[..., c].flatten().int(), minlength=256) for c in range(3)]).double()
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


def _cifar(name: str, directory: Path) -> tuple[Images, Images, list[str]]:
    """CIFAR through torchvision: MD5 checked, downloaded when it is not there."""
    from torchvision import datasets

    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    parts = []
    for train in (True, False):
        # torchvision's own messages are not part of the run's output
        with contextlib.redirect_stdout(sys.stderr):
            try:
                part = source(str(directory), train=train, download=False)
            except (RuntimeError, OSError, EOFError, ValueError):
                try:
                    part = source(str(directory), train=train, download=True)
                except (RuntimeError, OSError, EOFError, ValueError) as error:
                    with contextlib.suppress(OSError):
                        directory.rmdir()  # torchvision made it for the download; if it holds anything it stays
                    raise DataError(
                        f"no usable {name} in '{directory}' and its download failed ({_one_line(error)}): put the official "
                        f"python archive there, or use --dataset digits, or --dataset folder"
                    ) from None
        parts.append(Images(torch.from_numpy(part.data), torch.tensor(part.targets)))
    return *parts, part.classes


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _digits() -> tuple[Images, Images, list[str]]:
    """The 1,797 handwritten digits inside scikit-learn (Alpaydin and Kaynak, 1998), 8x8, enlarged to 32x32."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.from_numpy(bunch.images).float().unsqueeze(1) * (255 / 16)
    large = F.interpolate(small, size=32, mode="bilinear", align_corners=False).round().clamp(0, 255).byte()
    every = Images(large.permute(0, 2, 3, 1).expand(-1, -1, -1, 3), torch.from_numpy(bunch.target).long())
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(every)))
    return every.pick(order[:1437]), every.pick(order[1437:]), [str(digit) for digit in range(10)]


def folder_classes(directory: Path) -> list[str]:
    """Class names of DIR/train, which must be those of DIR/test; DataError otherwise."""
    found = {}
    for part in ("train", "test"):
        place = Path(directory) / part
        if not place.is_dir():
            raise DataError(f"no folder '{place}': --dataset folder reads DIR/train/CLASS/IMAGE and DIR/test/CLASS/IMAGE")
        found[part] = sorted(child.name for child in place.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not found["train"]:
        raise DataError(f"no class folders in '{Path(directory) / 'train'}'")
    if found["train"] != found["test"]:
        odd = sorted(set(found["train"]) ^ set(found["test"]))
        raise DataError(f"'{directory}': classes differ between train and test: {', '.join(odd[:5])}")
    return found["train"]


def _folder(directory: Path, size: int) -> tuple[Images, Images, list[str]]:
    """Images in the layout of torchvision's ImageFolder."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    classes, samples = folder_classes(directory), []
    for part in ("train", "test"):
        try:
            samples.append(make_dataset(str(directory / part), {name: i for i, name in enumerate(classes)}, IMG_EXTENSIONS))
        except FileNotFoundError as error:
            raise DataError(f"'{directory / part}': {_one_line(error)}") from None
    pixels = read_images([path for part in samples for path, _ in part], size).split([len(part) for part in samples])
    labels = [torch.tensor([label for _, label in part]) for part in samples]
    train, test = (Images(*part) for part in zip(pixels, labels, strict=True))
    return train, test, classes


def read_images(paths: list[str], size: int) -> Tensor:
    """Image files as bytes, (n, size, size, 3); see `fit`. DataError, naming them, if some cannot be read."""
    from PIL import Image

    pixels, unreadable = [], []
    for path in paths:
        try:
            with Image.open(path) as image:
                pixels.append(fit(image, size))
        except (OSError, ValueError, SyntaxError):
            unreadable.append(path)
    if unreadable:
        raise DataError(f"{len(unreadable)} unreadable images: {', '.join(unreadable[:5])}")
    return torch.from_numpy(np.stack(pixels))


def fit(image, size: int) -> np.ndarray:
    """A PIL image as bytes (size, size, 3), the shorter side scaled to `size`, centre cropped."""
    from PIL import Image, ImageOps

    if image.mode.startswith("I"):  # 16 bits a pixel, which PIL would clip to 8
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    return np.array(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR))


def class_count(dataset: str, directory: str) -> int:
    """How many classes a data set has, without loading it."""
    return len(folder_classes(Path(directory))) if dataset == "folder" else {"cifar100": 100}.get(dataset, 10)


def load(dataset: str, directory: str, *, val_size: float, normalise: str, image_size: int, device) -> Dataset:
    """A data set by name, `val_size` of its training images held out. DataError if it is not there or not usable."""
    if dataset == "digits":
        train, test, classes = _digits()
    elif dataset == "folder":
        train, test, classes = _folder(Path(directory), image_size)
    else:
        train, test, classes = _cifar(dataset, Path(directory))
    valid = None
    if val_size > 0:
        kept, held = hold_out(train.labels, val_size)
        if len(held) == 0 or len(kept) == 0:
            raise DataError(f"--val_size {val_size:g} of {len(train)} training images leaves a split empty")
        train, valid = train.pick(kept), train.pick(held)
    if len(train) < 2:
        raise DataError("batch norm needs at least two training images")
    return Dataset(train, valid, test, classes, normalise, device)
