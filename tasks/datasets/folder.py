"""A folder of image files, a class a folder."""

from pathlib import Path

import torch

from settings.errors import Refused
from tasks.images import Images, one_line, read_images


def folder_classes(directory: Path) -> list[str]:
    """Class names of DIR/train, which must be those of DIR/test; Refused otherwise."""
    found = {}
    for part in ("train", "test"):
        place = Path(directory) / part
        if not place.is_dir():
            raise Refused(f"no folder '{place}': --dataset folder reads DIR/train/CLASS/IMAGE and DIR/test/CLASS/IMAGE")
        found[part] = sorted(child.name for child in place.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not found["train"]:
        raise Refused(f"no class folders in '{Path(directory) / 'train'}'")
    if found["train"] != found["test"]:
        odd = sorted(set(found["train"]) ^ set(found["test"]))
        raise Refused(f"'{directory}': classes differ between train and test: {', '.join(odd[:5])}")
    return found["train"]


def read_folder(directory: Path, size: int) -> tuple[Images, Images, list[str]]:
    """Images in the layout of torchvision's ImageFolder."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    classes, samples = folder_classes(directory), []
    for part in ("train", "test"):
        try:
            samples.append(make_dataset(str(directory / part), {name: i for i, name in enumerate(classes)}, IMG_EXTENSIONS))
        except FileNotFoundError as error:
            raise Refused(f"'{directory / part}': {one_line(error)}") from None
    pixels = read_images([path for part in samples for path, _ in part], size).split([len(part) for part in samples])
    labels = [torch.tensor([label for _, label in part]) for part in samples]
    train, test = (Images(*part) for part in zip(pixels, labels, strict=True))
    return train, test, classes
