"""This file finds the pictures of a folder's classes on disk, and says which files it passed over."""

import os
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from settings.errors import Refused
from tasks.pictures import listed, suffixes


@dataclass
class Listing:
    """The pictures of one part of a data set: `classes` maps the name of a class to the paths of its pictures.

    `notes` says, in lines for stderr, which files were passed over and which lie deeper than expected.
    """

    classes: dict[str, list[str]]
    notes: list[str] = field(default_factory=list)

    def samples(self, classes: list[str]) -> tuple[list[str], list[int]]:
        """Return the paths of all pictures, class after class, and the number of each picture's class in `classes`."""
        paths = [path for name in classes for path in self.classes.get(name, ())]
        labels = [number for number, name in enumerate(classes) for _ in self.classes.get(name, ())]
        return paths, labels


def class_folders(part: Path, leave_out: tuple[str, ...] = ()) -> dict[str, list[Path]]:
    """Return the folders of each class below `part`, by the name of the class in Unicode's composed form, sorted.

    Names that differ by Unicode normalisation alone are one class, as when an archive was packed on another system. Hidden
    folders and names in `leave_out` are no classes. Refused if a link makes one folder two classes.
    """
    folders: dict[str, list[Path]] = {}
    owners: dict[str, str] = {}
    for child in sorted(part.iterdir()):
        if child.is_dir() and not _hidden(child.name) and child.name not in leave_out:
            name = unicodedata.normalize("NFC", child.name)
            folders.setdefault(name, []).append(child)
            other = owners.setdefault(os.path.realpath(child), name)
            if other != name:
                raise Refused(f"'{part}': {other} and {name} are one folder, so each of its pictures is of two classes")
    return dict(sorted(folders.items()))


def list_pictures(part: Path, folders: dict[str, list[Path]], closed: set[str]) -> Listing:
    """Find the pictures in the folders of each class, at any depth, sorted by folder and name.

    Hidden files and folders are skipped at every depth. Links are followed, but not upwards, not to a picture or folder that
    was met before, and not into another class: `closed` holds the real paths of the folders of all classes of all parts.
    Refused if a class has no picture, or if a folder cannot be read.
    """
    walks = {name: _Walk(closed) for name in folders}
    for name, walk in walks.items():
        for folder in folders[name]:
            walk.go_through(folder)
    loose = [child for child in part.iterdir() if child.is_file() and not _hidden(child.name)]
    passed_over = [path for walk in walks.values() for path in walk.passed_over]
    empty = [name for name, walk in walks.items() if not walk.pictures]
    if empty:
        others = f"; passed over: {listed(passed_over)}" if passed_over else ""
        raise Refused(f"'{part}': no pictures of {', '.join(empty[:5])}{others}")
    notes, deeper = [], [f"{folder} ({number})" for walk in walks.values() for folder, number in walk.deeper.items()]
    if deeper:
        more = f" and {len(deeper) - 5} more" if len(deeper) > 5 else ""
        notes.append(f"'{part}': folders in class folders are of the same class: {', '.join(deeper[:5])}{more}")
    if passed_over:
        notes.append(f"'{part}': passed over {listed(passed_over)}, which are no pictures that can be read")
    if pictures := [child for child in loose if child.suffix.lower() in suffixes()]:
        notes.append(f"'{part}': passed over {listed(pictures)} that lie in no class folder")
    if repeated := sum(walk.repeated for walk in walks.values()):
        notes.append(f"'{part}': passed over {repeated} links to what is read elsewhere")
    return Listing({name: walk.pictures for name, walk in walks.items()}, notes)


def unsorted_pictures(folder: Path) -> tuple[list[str], list[str]]:
    """Find the pictures in a folder without classes, at any depth, as `list_pictures` does in that of a class.

    Returns their paths, and lines for stderr on what was passed over. Refused if there is none, or a folder cannot be read.
    """
    walk = _Walk(set())
    walk.go_through(folder)
    if not walk.pictures:
        others = f"; passed over: {listed(walk.passed_over)}" if walk.passed_over else ""
        raise Refused(f"--unlabelled: no pictures in '{folder}'{others}")
    notes = [f"'{folder}': passed over {listed(walk.passed_over)}, which are no pictures that can be read"]
    notes = notes if walk.passed_over else []
    if walk.repeated:
        notes.append(f"'{folder}': passed over {walk.repeated} links to what is read elsewhere")
    return walk.pictures, notes


class _Walk:
    """The pictures below the folders of one class, and what was passed over on the way."""

    def __init__(self, closed: set[str]):
        self.closed, self.own = closed, ""
        self.met: set[str] = set()  # real paths of folders and pictures
        self.pictures: list[str] = []
        self.passed_over: list[Path] = []
        self.deeper: dict[str, int] = {}
        self.repeated = 0

    def go_through(self, folder: Path) -> None:
        """Add what lies below a class folder."""
        rows = []
        self.own = os.path.realpath(folder)
        for root, directories, files in os.walk(folder, followlinks=True, onerror=_refuse):
            real = os.path.realpath(root)
            directories[:] = [name for name in sorted(directories) if not _hidden(name) and self._opens(root, name, real)]
            rows.append((root, real, sorted(name for name in files if not _hidden(name))))
        links = []
        for root, real, names in sorted(rows):
            for name in names:
                path = os.path.join(root, name)
                if Path(name).suffix.lower() not in suffixes():
                    self.passed_over.append(Path(path))
                elif os.path.islink(path):
                    links.append(path)
                else:
                    self._add(path, os.path.join(real, name), folder)
        for path in links:  # the picture itself counts, not a link to it
            if self._is_of_another(real := os.path.realpath(path)):
                self.repeated += 1
            else:
                self._add(path, real, folder)
        self.pictures.sort(key=os.path.split)

    def _opens(self, root: str, name: str, real: str) -> bool:
        """Return whether a folder is to be walked through: it does not lead upwards, and nothing in it counts twice."""
        target = os.path.realpath(os.path.join(root, name))
        if target in self.met or self._is_of_another(target) or os.path.commonpath([target, real]) == target:
            self.repeated += 1
            return False
        self.met.add(target)
        return True

    def _is_of_another(self, real: str) -> bool:
        """Return whether a real path is, or lies in, the folder of another class than the one that is walked through."""
        around = map(str, (Path(real), *Path(real).parents))
        return next((folder for folder in around if folder in self.closed), self.own) != self.own

    def _add(self, path: str, real: str, folder: Path) -> None:
        if real in self.met:
            self.repeated += 1
            return
        self.met.add(real)
        self.pictures.append(path)
        parent = Path(path).parent
        if parent != folder:
            below = f"{folder.name}/{parent.relative_to(folder).parts[0]}"
            self.deeper[below] = self.deeper.get(below, 0) + 1


def _refuse(error: OSError):
    """Refuse a folder that cannot be read, which os.walk otherwise takes for an empty one."""
    raise Refused(f"cannot read '{error.filename}': {error.strerror}")


def _hidden(name: str) -> bool:
    """Return whether a system or a program put a file or folder there for itself, such as .ipynb_checkpoints."""
    return name.startswith(".") or name == "__MACOSX"
