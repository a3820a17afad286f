"""This file reads CIFAR-10 and CIFAR-100 through torchvision, which checks their MD5 and downloads what is missing."""

import contextlib
import sys
from pathlib import Path

import torch

from settings.errors import Refused
from tasks.images import Images, Source, archive_folder, one_line


class _CIFAR(Source):
    """Either of the two data sets; `name` says which one, `number_of_classes` how many classes it has."""

    name: str
    number_of_classes: int

    def class_count(self) -> int:
        return self.number_of_classes

    def read(self) -> tuple[Images, Images, list[str]]:
        from torchvision import datasets

        source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[self.name]
        parts = []
        for train in (True, False):
            # torchvision's own messages are not part of the run's output
            with contextlib.redirect_stdout(sys.stderr):
                part = _part(source, self.name, archive_folder(self.directory, source.base_folder), train)
            parts.append(Images(torch.from_numpy(part.data), torch.tensor(part.targets)))
        return *parts, part.classes


class CIFAR10(_CIFAR):
    """CIFAR-10 (Krizhevsky, 2009): 50,000 training and 10,000 test images of 32x32 pixels in 10 classes."""

    name, number_of_classes = "cifar10", 10


class CIFAR100(_CIFAR):
    """CIFAR-100 (Krizhevsky, 2009): images like those of CIFAR-10 in 100 classes."""

    name, number_of_classes = "cifar100", 100


def _part(source, name: str, directory: Path, train: bool):
    """Return torchvision's training or test set. Refused if it is not usable and cannot be downloaded."""
    unusable = (RuntimeError, OSError, EOFError, ValueError)
    try:
        return source(str(directory), train=train, download=False)
    except unusable:
        try:
            return source(str(directory), train=train, download=True)
        except unusable as error:
            with contextlib.suppress(OSError):
                directory.rmdir()  # torchvision made it for the download; if it holds anything it stays
            raise Refused(
                f"no usable {name} in '{directory}' and its download failed ({one_line(error)}): put the official "
                f"python archive there, or use --dataset digits, or --dataset folder"
            ) from None
