"""This file reads a data set of the user's own: image files in DIR/train/CLASS/IMAGE and DIR/test/CLASS/IMAGE."""

import torch

from settings.errors import Refused
from tasks.images import Images, Source, one_line
from tasks.pictures import read_pictures


class Folder(Source):
    """A folder of image files in the layout of torchvision's ImageFolder, scaled to one size."""

    def class_count(self) -> int:
        return len(self.class_names())

    def read(self) -> tuple[Images, Images, list[str]]:
        from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

        classes, samples = self.class_names(), []
        for part in ("train", "test"):
            numbers = {name: number for number, name in enumerate(classes)}
            try:
                samples.append(make_dataset(str(self.directory / part), numbers, IMG_EXTENSIONS))
            except FileNotFoundError as error:
                raise Refused(f"'{self.directory / part}': {one_line(error)}") from None
        paths = [path for part in samples for path, _ in part]
        pixels = read_pictures(paths, self.image_size, self.channels, self.fit).split([len(part) for part in samples])
        labels = [torch.tensor([label for _, label in part]) for part in samples]
        train, test = (Images(*part) for part in zip(pixels, labels, strict=True))
        return train, test, classes

    def class_names(self) -> list[str]:
        """Return the sorted names of the class folders in DIR/train. Refused unless DIR/test has the same ones."""
        names = {}
        for part in ("train", "test"):
            folder = self.directory / part
            if not folder.is_dir():
                raise Refused(f"no folder '{folder}': --dataset folder reads DIR/train/CLASS/IMAGE and DIR/test/CLASS/IMAGE")
            names[part] = sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
        if not names["train"]:
            raise Refused(f"no class folders in '{self.directory / 'train'}'")
        if names["train"] != names["test"]:
            odd = sorted(set(names["train"]) ^ set(names["test"]))
            raise Refused(f"'{self.directory}': classes differ between train and test: {', '.join(odd[:5])}")
        return names["train"]
