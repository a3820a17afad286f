"""This file reads MNIST and Fashion-MNIST through torchvision, which checks their MD5 and downloads what is missing."""

from pathlib import Path

from settings.errors import Refused
from tasks.downloads import archive_folder, torchvision_parts
from tasks.images import Images, Source, scaled


class _MNIST(Source):
    """Either of the two data sets; `archive` is the name of torchvision's class, and of the folder that it reads."""

    # a mirrored digit is no digit
    augment = "crop"
    archive: str

    def __init__(self, data_dir: str, image_size: int, channels: int):
        super().__init__((channels, image_size, image_size))
        self.directory = Path(data_dir)

    def class_count(self) -> int:
        return 10

    def read(self) -> tuple[Images, Images, list[str]]:
        from torchvision import datasets
        from torchvision.datasets.utils import check_integrity

        source, name = getattr(datasets, self.archive), type(self).__name__.lower()
        parts = torchvision_parts(source, name, archive_folder(self.directory, self.archive))
        for file, checksum in source.resources:  # which torchvision checks only when it downloads them
            if not check_integrity(path := Path(parts[0].raw_folder) / file, checksum):
                raise Refused(f"'{path}' is missing, or not the official one: --dataset {name} reads it with its checksum")
        images = [Images(scaled(part.data, self.inputs), part.targets) for part in parts]
        return *images, [label.split(" - ")[0] for label in parts[0].classes]


class MNIST(_MNIST):
    """MNIST (LeCun et al., 1998): 60,000 training and 10,000 test images of handwritten digits, 28x28 grey pixels."""

    archive = "MNIST"

    def __init__(self, *, data_dir: str = "data", image_size: int = 32, channels: int = 3):
        super().__init__(data_dir, image_size, channels)


class FashionMNIST(_MNIST):
    """Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017, arXiv 1708.07747): clothes, as many and as large as MNIST's digits."""

    archive, augment = "FashionMNIST", "crop_flip"

    def __init__(self, *, data_dir: str = "data", image_size: int = 32, channels: int = 3):
        super().__init__(data_dir, image_size, channels)
