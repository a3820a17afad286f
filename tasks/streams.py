"""This file reads pictures from their files while a network trains, where they do not fit into memory."""

import os
import stat
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Items

from settings.errors import Failed, Refused
from tasks.pictures import formats, read_picture
from tasks.views import Views, resized, seeded


def workers_beside(device: torch.device) -> int:
    """Return how many processes make batches while an accelerator trains; on the CPU none, which has no time to spare."""
    return 0 if device.type == "cpu" else min(8, max((os.cpu_count() or 2) - 1, 1))


def loaded(items: Items, device: torch.device, workers: int | None = None, **options) -> Iterator:
    """Yield batches of items as a DataLoader makes them, in processes beside an accelerator, or in so many `workers`."""
    number = workers_beside(device) if workers is None else workers
    # with a generator of its own: otherwise the loader would draw from the run's random state
    chance = torch.Generator().manual_seed(0)
    yield from DataLoader(items, num_workers=number, pin_memory=device.type == "cuda", generator=chance, **options)


@dataclass(frozen=True)
class Streamed:
    """Pictures that are read each time: what stands for the bytes (n, size, size, channels) of `Images`.

    An index, slice or tensor of indices gives some of the pictures, of which none is read before `batches` or `read`. `workers`
    processes read them, None for as many as suit the device.
    """

    paths: Sequence[str]
    size: int
    channels: int = 3
    fit: str = "crop"
    device: torch.device | str = "cpu"
    workers: int | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> torch.Size:
        return torch.Size([len(self), self.size, self.size, self.channels])

    def __getitem__(self, chosen) -> "Streamed":
        if isinstance(chosen, slice):
            return replace(self, paths=self.paths[chosen])
        return replace(self, paths=[self.paths[number] for number in torch.as_tensor(chosen).tolist()])

    def contiguous(self) -> "Streamed":
        return self

    def to(self, device) -> "Streamed":
        """Return the same pictures, to be read onto another device."""
        return replace(self, device=device)

    def batches(self, parts: Iterable[Tensor | slice], seeds: Tensor | None = None, scale: float = 0.0) -> Iterator[Tensor]:
        """Yield the bytes (images, size, size, channels) of some parts of the pictures, on the device, in their order.

        With `seeds`, (n,), each is instead a random part of its whole picture, at least the fraction `scale` of it, mirrored or
        not: what becomes of the picture of number i depends on seeds[i] alone. Failed, naming the first, for what cannot be read.
        """
        places = _Places(len(self), parts, seeds)
        items = _Files(self.paths, self.size, self.channels, self.fit, scale)
        for batch in loaded(items, torch.device(self.device), self.workers, batch_sampler=places, collate_fn=_joined):
            if isinstance(batch, str):
                raise Failed(f"a picture that was there at the start cannot be read any more, or only its head could: {batch}")
            yield batch.to(self.device, non_blocking=True)

    def read(self) -> Tensor:
        """Return all of the pictures as bytes (n, size, size, channels), on the device."""
        if not len(self):
            return torch.empty(self.shape, dtype=torch.uint8, device=self.device)
        return next(self.batches([slice(0, len(self))]))


def in_parts(pixels: Tensor | Streamed, parts: list[slice]) -> Iterator[Tensor]:
    """Yield some parts of pixels as bytes, from their files where they are streamed."""
    return pixels.batches(parts) if isinstance(pixels, Streamed) else (pixels[part] for part in parts)


def seen(views: Views, parts: list[slice], from_files: bool) -> Iterator[Tensor]:
    """Yield some parts of the views as bytes; with `from_files` they are made of the whole pictures."""
    if not isinstance(views.pixels, Streamed):
        yield from (views[part] for part in parts)
        return
    orders = [views.order[part] for part in parts]
    if from_files:
        seeds = torch.empty(len(views.pixels), dtype=torch.int64)
        seeds[views.order.cpu()] = views.seeds  # a view is of a picture of its own
        yield from views.pixels.batches(orders, seeds, views.scale)
        return
    for squares, part in zip(views.pixels.batches(orders), parts, strict=True):
        yield views.of(squares, torch.arange(len(squares), device=squares.device), part)


class _Places:
    """The numbers of the pictures of each part, with the seed of each: what a DataLoader takes for the indices of batches."""

    def __init__(self, count: int, parts: Iterable[Tensor | slice], seeds: Tensor | None):
        self.count, self.parts, self.seeds = count, parts, seeds

    def __iter__(self) -> Iterator[list]:
        for part in self.parts:
            numbers = list(range(self.count)[part]) if isinstance(part, slice) else part.tolist()
            yield [(number, None if self.seeds is None else int(self.seeds[number])) for number in numbers]


class _Files(Items):
    """Pictures by (number, seed): the square of bytes, or the words that say why it cannot be read."""

    def __init__(self, paths: Sequence[str], size: int, channels: int, fit: str, scale: float):
        self.paths, self.size, self.channels, self.fit, self.scale = paths, size, channels, fit, scale

    def __getitem__(self, place: tuple[int, int | None]) -> Tensor | str:
        number, seed = place
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # remarks on files that can be read all the same
                pixels = read_picture(self.paths[number], self.size if seed is None else None, self.channels, self.fit)
        except ValueError as error:
            return str(error)
        if seed is None:
            return torch.from_numpy(pixels)
        with seeded(seed):
            return resized(torch.from_numpy(pixels), self.size, self.scale)


def _joined(items: list[Tensor | str]) -> Tensor | str:
    """Return a batch, or what is wrong with the first picture that cannot be read."""
    return next((item for item in items if isinstance(item, str)), None) or torch.stack(items)


def check_heads(paths: Sequence[str], quiet: bool = True) -> None:
    """Raise Refused, naming them, for files that do not begin as a picture does, or are too large; none is decoded."""
    from tqdm import tqdm

    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")
        heads = tqdm(pool.map(_head, paths), "heads of pictures", len(paths), leave=False, delay=1, disable=quiet)
        unreadable = [path for path in heads if path is not None]
    if unreadable:
        raise Refused(f"{len(unreadable)} unreadable images: {', '.join(unreadable[:5])}")


def _head(path: str) -> str | None:
    """Return the path of a file whose head is no picture's, None for a picture."""
    from PIL import Image

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return path  # such as a pipe, which would be waited for
        with Image.open(path, formats=formats()) as picture:
            return path if picture.width * picture.height > Image.MAX_IMAGE_PIXELS else None
    except Exception:  # a decoder raises whatever it likes at a damaged file
        return path


def chosen_evenly(count: int, most: int) -> Tensor:
    """Return the numbers of at most so many of `count` pictures, evenly through all of them."""
    return torch.from_numpy(np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)))
