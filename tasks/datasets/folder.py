"""A folder of image files holds a data set of the user's own: DIR/train/CLASS/IMAGE and DIR/test/CLASS/IMAGE."""

from pathlib import Path

import torch

from settings.errors import Refused
from tasks.images import Images, Source, one_line, read_images


class Folder(Source):
    """Image files in the layout of torchvision's ImageFolder, scaled and cropped to one size."""

    def class_count(self) -> int:
        return len(_folder_classes(self.directory))

    def read(self) -> tuple[Images, Images, list[str]]:
        from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

        classes, samples = _folder_classes(self.directory), []
        for part in ("train", "test"):
            numbers = {name: number for number, name in enumerate(classes)}
            try:
                samples.append(make_dataset(str(self.directory / part), numbers, IMG_EXTENSIONS))
            except FileNotFoundError as error:
                raise Refused(f"'{self.directory / part}': {one_line(error)}") from None
        paths = [path for part in samples for path, _ in part]
        pixels = read_images(paths, self.image_size, self.channels).split([len(part) for part in samples])
        labels = [torch.tensor([label for _, label in part]) for part in samples]
        train, test = (Images(*part) for part in zip(pixels, labels, strict=True))
        return train, test, classes


def _folder_classes(directory: Path) -> list[str]:
    """The class names of DIR/train, sorted; Refused unless they are those of DIR/test."""
    names = {}
    for part in ("train", "test"):
        folder = Path(directory) / part
        if not folder.is_dir():
            raise Refused(f"no folder '{folder}': --dataset folder reads DIR/train/CLASS/IMAGE and DIR/test/CLASS/IMAGE")
        names[part] = sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not names["train"]:
        raise Refused(f"no class folders in '{Path(directory) / 'train'}'")
    if names["train"] != names["test"]:
        odd = sorted(set(names["train"]) ^ set(names["test"]))
        raise Refused(f"'{directory}': classes differ between train and test: {', '.join(odd[:5])}")
    return names["train"]
