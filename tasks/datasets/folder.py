"""This file reads a data set of the user's own: pictures in DIR/train/CLASS and DIR/test/CLASS, in folders of their class."""

import os
from pathlib import Path

import torch

from settings.errors import Refused
from tasks.images import Images, Source, hold_out
from tasks.listing import Listing, class_folders, list_pictures
from tasks.memory import allowed
from tasks.pictures import read_pictures
from tasks.streams import Streamed, check_heads

HELD_OUT = ("validation", "val")


class Folder(Source):
    """Pictures in one folder for each class, read as squares of one size.

    DIR/validation or DIR/val holds the held-out images, where there is one. With `test_size` that fraction of the pictures in
    DIR/train, or in DIR itself, is the test part, as many of each class, and the same ones at every call. Where all pictures
    would take more than `memory` gigabytes, or without it half of what is free, they are read from their files at every step.
    """

    def __init__(
        self,
        *,
        data_dir: str = "data",
        image_size: int = 32,
        channels: int = 3,
        fit: str = "crop",
        test_size: float | None = None,
        memory: float | None = None,
    ):
        super().__init__((channels, image_size, image_size))
        self.directory, self.fit, self.test_size = Path(data_dir), fit, test_size
        self.memory, self.streams = memory, False

    def class_count(self) -> int:
        return len(self.class_names())

    def class_names(self) -> list[str]:
        """Return the sorted names of the classes. Refused if there are none, or if the test part has others."""
        pool = self._pool()
        classes = list(self._folders(pool))
        if not classes:
            raise Refused(f"no class folders in '{pool}'")
        if self.test_size is None:
            odd = sorted({*classes} ^ {*class_folders(self._test_folder())})
            if odd:
                raise Refused(f"'{self.directory}': classes differ between train and test: {', '.join(odd[:5])}")
        return classes

    def read(self) -> tuple[Images, Images, list[str]]:
        classes = self.class_names()
        paths, labels = self._listing(self._pool()).samples(classes)
        if self.test_size is None:
            test = self._listing(self._test_folder()).samples(classes)
        else:
            (paths, labels), test = self._split(paths, labels, classes)
        self._decide(len(paths) + len(test[0]) + self._held_out_files())
        return self._images(paths, labels, self.from_files), self._images(*test), classes

    def read_test(self) -> tuple[Images, list[str]]:
        if self.test_size is not None:
            classes = self.class_names()
            _, test = self._split(*self._listing(self._pool()).samples(classes), classes)
            self._decide(len(test[0]))
            return self._images(*test), classes
        part = self._test_folder()
        classes = list(class_folders(part))
        if not classes:
            raise Refused(f"no class folders in '{part}'")
        paths, labels = self._listing(part).samples(classes)
        self._decide(len(paths))
        return self._images(paths, labels), classes

    def read_held_out(self, classes: list[str]) -> Images | None:
        parts = [self.directory / name for name in HELD_OUT if (self.directory / name).is_dir()]
        if not parts:
            return None
        if len(parts) > 1:
            raise Refused(f"'{parts[0]}' and '{parts[1]}' both hold held-out images: leave one")
        if strange := sorted(class_folders(parts[0]).keys() - {*classes}):
            raise Refused(f"'{parts[0]}': no such classes in training: {', '.join(strange[:5])}")
        self.notes.append(f"the held-out images are those of '{parts[0]}'; --val_size has no effect")
        return self._images(*self._listing(parts[0]).samples(classes))

    def _pool(self) -> Path:
        """Return the folder of the training images; with --test_size also of the test images, and it may be DIR itself."""
        part, whole = self.directory / "train", self.test_size is not None
        if part.is_dir():
            return part
        if whole and self.directory.is_dir() and not (self.directory / "test").is_dir():
            return self.directory
        cure = "" if whole or not self.directory.is_dir() else "; --test_size 0.2 splits a folder without parts, DIR/CLASS/IMAGE"
        raise Refused(f"no folder '{part}': --dataset folder reads DIR/train/CLASS/IMAGE and DIR/test/CLASS/IMAGE{cure}")

    def _test_folder(self) -> Path:
        part = self.directory / "test"
        if not part.is_dir():
            cure = f"--test_size 0.2 takes a fifth of '{self.directory / 'train'}' instead"
            raise Refused(f"no folder '{part}': --dataset folder reads DIR/train/CLASS/IMAGE and DIR/test/CLASS/IMAGE; {cure}")
        return part

    def _folders(self, part: Path) -> dict[str, list[Path]]:
        """Return the class folders of a part; where DIR itself is the pool, those of held-out images are none."""
        return class_folders(part, HELD_OUT if part == self.directory else ())

    def _listing(self, part: Path) -> Listing:
        """Find the pictures of a part, and keep what there is to say about them."""
        parts = {part, *(self.directory / name for name in ("train", "test", *HELD_OUT))}
        parts = [folder for folder in parts if folder.is_dir()]
        classes = [folder for each in parts for folders in self._folders(each).values() for folder in folders]
        listing = list_pictures(part, self._folders(part), {str(folder.resolve()) for folder in classes})
        self.notes += listing.notes
        return listing

    def _split(self, paths: list[str], labels: list[int], classes: list[str]) -> tuple[tuple, tuple]:
        """Split pictures into training and test, stratified and always alike. Refused if there is a test part already."""
        if (self.directory / "test").is_dir():
            raise Refused(f"--test_size {self.test_size:g}: there is a test part already, '{self.directory / 'test'}'")
        parts = hold_out(torch.tensor(labels), self.test_size, seed=1)
        if min(map(len, parts)) == 0:
            raise Refused(f"--test_size {self.test_size:g} of {len(paths)} images leaves a part empty")
        missing = [name for number, name in enumerate(classes) if number not in {labels[i] for i in parts[1].tolist()}]
        if missing:
            self.notes.append(f"{len(missing)} of {len(classes)} classes have no test image: {', '.join(missing[:5])}")
        return tuple(([paths[i] for i in part.tolist()], [labels[i] for i in part.tolist()]) for part in parts)

    def _decide(self, number: int) -> None:
        """Decide whether so many pictures are read from their files at every step, since they do not fit into memory."""
        channels, size, _ = self.inputs
        taken, (most, why) = number * size * size * channels, allowed(self.memory, self.device)
        self.streams = taken > most
        if self.streams:
            words = f"{number} pictures would take {taken / 1e9:.3g} GB, and {most / 1e9:.3g} may be kept ({why})"
            self.notes.append(f"{words}: they are read from their files at every step")

    def _held_out_files(self) -> int:
        """Return how many files there are in a folder of held-out images, about as many as pictures."""
        return sum(len(files) for name in HELD_OUT for _, _, files in os.walk(self.directory / name))

    def _images(self, paths: list[str], labels: list[int], from_files: bool = False) -> Images:
        channels, size, _ = self.inputs
        if self.streams or from_files:
            check_heads(paths, self.quiet)
            pixels = Streamed(paths, size, channels, self.fit)
        else:
            pixels = read_pictures(paths, size, channels, self.fit, self.quiet)
        return Images(pixels, torch.tensor(labels, dtype=torch.long))
