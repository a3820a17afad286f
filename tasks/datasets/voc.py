"""This file reads pictures with boxes in the layout of PASCAL VOC: DIR/JPEGImages, DIR/Annotations and DIR/ImageSets/Main."""

from pathlib import Path
from typing import Annotated

import torch

from settings.errors import Refused
from settings.files import read_whole
from tasks.annotations import Box, read_annotation
from tasks.boxed import Boxed
from tasks.images import Source, hold_out
from tasks.pictures import size_of, suffixes

_LAYOUT = "--dataset voc reads DIR/JPEGImages/NAME.jpg, DIR/Annotations/NAME.xml and DIR/ImageSets/Main/trainval.txt, test.txt"


class VOC(Source):
    """Pictures with boxes, whose class names are those that the annotations have, in the order of the alphabet.

    ImageSets/Main/trainval.txt lists the names of the training pictures, or train.txt, beside which val.txt lists those that
    are held out; test.txt lists the test pictures. With `test_size` that fraction of the training pictures is the test part.
    """

    task: Annotated[str, "task: detection"] = "detection"
    augment = "ssd"

    def __init__(self, *, data_dir: str = "data", image_size: int = 32, test_size: float | None = None):
        super().__init__((3, image_size, image_size))
        self.directory, self.test_size = Path(data_dir), test_size
        self._annotations: dict[str, list[Box]] = {}

    def class_count(self) -> int:
        return len(self.class_names())

    def class_names(self) -> list[str]:
        """Return the names of the classes of all parts. Refused if there is none, or if the test part has others."""
        trained = self._classes_in(self._listed(self._training_list()))
        if not trained:
            raise Refused(f"no box in the annotations of '{self._training_list()}'")
        for part in ("test", "val"):
            path = self._list_of(part)
            listed = self._listed(path) if path.is_file() and (part == "test" or self._holds_out()) else []
            for name in listed:
                if strange := {box[0] for box in self._boxes(name)} - trained:
                    raise Refused(f"'{self._annotation_file(name)}': no such class in training: {', '.join(sorted(strange))}")
        return sorted(trained)

    def read(self) -> tuple[Boxed, Boxed, list[str]]:
        classes, names = self.class_names(), self._listed(self._training_list())
        if self.test_size is None:
            train, test = self._boxed(names, classes), self._boxed(self._listed(self._test_list()), classes)
        else:
            if self._list_of("test").is_file():
                raise Refused(f"--test_size {self.test_size:g}: there is a test part already, '{self._list_of('test')}'")
            parts = hold_out(torch.zeros(len(names), dtype=torch.long), self.test_size, seed=1)
            if min(map(len, parts)) == 0:
                raise Refused(f"--test_size {self.test_size:g} of {len(names)} images leaves a part empty")
            train, test = (self._boxed([names[index] for index in part.tolist()], classes) for part in parts)
        return train, test, classes

    def read_test(self) -> tuple[Boxed, list[str]]:
        if self.test_size is not None:
            _, test, classes = self.read()
            return test, classes
        names = self._listed(self._test_list())
        classes = sorted(self._classes_in(names))
        return self._boxed(names, classes), classes

    def read_held_out(self, classes: list[str]) -> Boxed | None:
        if not self._holds_out():
            return None
        self.notes.append(f"the held-out images are those of '{self._list_of('val')}'; --val_size has no effect")
        return self._boxed(self._listed(self._list_of("val")), classes)

    def _list_of(self, part: str) -> Path:
        return self.directory / "ImageSets" / "Main" / f"{part}.txt"

    def _training_list(self) -> Path:
        """Return the list of the training pictures. Refused if there is none."""
        for part in ("trainval", "train"):
            if self._list_of(part).is_file():
                return self._list_of(part)
        raise Refused(f"no file '{self._list_of('trainval')}': {_LAYOUT}")

    def _test_list(self) -> Path:
        if not self._list_of("test").is_file():
            raise Refused(f"no file '{self._list_of('test')}': {_LAYOUT}; --test_size 0.2 takes a fifth of the others instead")
        return self._list_of("test")

    def _holds_out(self) -> bool:
        """Whether val.txt lists the held-out pictures: it does unless trainval.txt lists them among the training pictures."""
        return self._training_list().stem == "train" and self._list_of("val").is_file()

    def _listed(self, path: Path) -> list[str]:
        """Return the names that a list holds. Refused if it holds none, or one twice."""
        text = read_whole(path, "list of pictures", 1 << 28).decode("utf-8", "replace")
        names = [line.split()[0] for line in text.splitlines() if line.strip()]
        if not names:
            raise Refused(f"'{path}' lists no picture")
        if len({*names}) < len(names):
            raise Refused(f"'{path}' lists a picture twice: {next(name for name in names if names.count(name) > 1)}")
        if unsafe := [name for name in names if "/" in name or "\\" in name or name.startswith(".")]:
            raise Refused(f"'{path}' lists '{unsafe[0]}', which is no name of a picture in '{self.directory / 'JPEGImages'}'")
        return names

    def _annotation_file(self, name: str) -> Path:
        return self.directory / "Annotations" / f"{name}.xml"

    def _boxes(self, name: str) -> list[Box]:
        if name not in self._annotations:
            self._annotations[name] = read_annotation(self._annotation_file(name))
        return self._annotations[name]

    def _classes_in(self, names: list[str]) -> set[str]:
        return {box[0] for name in names for box in self._boxes(name)}

    def _picture(self, name: str) -> str:
        """Return the file of a picture. Refused if there is none."""
        folder = self.directory / "JPEGImages"
        for suffix in (".jpg", ".jpeg", ".png", ".JPG", *sorted(suffixes())):
            if (path := folder / f"{name}{suffix}").is_file():
                return str(path)
        raise Refused(f"no picture '{folder / name}.jpg', which '{self._annotation_file(name)}' describes")

    def _boxed(self, names: list[str], classes: list[str]) -> Boxed:
        """Return pictures with their boxes, of which those without an area in the picture are dropped and noted."""
        paths, sizes, targets, dropped = [], [], [], []
        for name in names:
            path = self._picture(name)
            width, height = size_of(path)
            rows = []
            for label, left, top, right, bottom, mark in self._boxes(name):
                left, right = (min(max(side / width, 0.0), 1.0) for side in (left, right))
                top, bottom = (min(max(side / height, 0.0), 1.0) for side in (top, bottom))
                if right <= left or bottom <= top:
                    dropped.append(f"{name} ({label})")
                else:
                    rows.append([left, top, right, bottom, classes.index(label) + 1, mark])
            paths.append(path)
            sizes.append((width, height))
            targets.append(torch.tensor(rows, dtype=torch.float32).reshape(-1, 6))
        if dropped:
            more = " ..." if len(dropped) > 5 else ""
            self.notes.append(f"{len(dropped)} boxes without an area are dropped, of {', '.join(dropped[:5])}{more}")
        return Boxed(paths, sizes, targets)
