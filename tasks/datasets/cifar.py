"""This file reads CIFAR-10 and CIFAR-100 through torchvision, which checks their MD5 and downloads what is missing."""

from pathlib import Path

import torch

from tasks.downloads import archive_folder, torchvision_parts
from tasks.images import Images, Source


class _CIFAR(Source):
    """Either of the two data sets; `name` says which one, `number_of_classes` how many classes it has."""

    name: str
    number_of_classes: int

    def __init__(self, data_dir: str):
        super().__init__((3, 32, 32))
        self.directory = Path(data_dir)

    def class_count(self) -> int:
        return self.number_of_classes

    def read(self) -> tuple[Images, Images, list[str]]:
        from torchvision import datasets

        source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[self.name]
        parts = torchvision_parts(source, self.name, archive_folder(self.directory, source.base_folder))
        images = [Images(torch.from_numpy(part.data), torch.tensor(part.targets)) for part in parts]
        return *images, parts[0].classes


class CIFAR10(_CIFAR):
    """CIFAR-10 (Krizhevsky, 2009): 50,000 training and 10,000 test images of 32x32 pixels in 10 classes."""

    name, number_of_classes = "cifar10", 10

    def __init__(self, *, data_dir: str = "data"):
        super().__init__(data_dir)


class CIFAR100(_CIFAR):
    """CIFAR-100 (Krizhevsky, 2009): images like those of CIFAR-10 in 100 classes."""

    name, number_of_classes = "cifar100", 100

    def __init__(self, *, data_dir: str = "data"):
        super().__init__(data_dir)
