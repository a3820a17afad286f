"""This benchmark reads odd folders of pictures: `python benchmarks/fuzz_folders.py`.

It makes small data sets for --dataset folder, each with some oddities (fuzz_oddities.py) that --seed chooses, and begins a
run on each, up to its first step. A folder must be refused in one line where an oddity spoils it, and read where none does;
the number of images of each class is compared with a count by other code, below. The command ends with status 1 if one leads
to a traceback, takes more than 20 s, is counted otherwise, or is read or refused against the manual.
"""

import argparse
import contextlib
import os
import random
import shutil
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import modeling
from benchmarks.fuzz_files import Reader, modeling_main, outcome
from benchmarks.fuzz_oddities import ODDITIES, PICTURES, SPOILT, picture
from runs.storage import as_json
from settings.errors import one_line
from training.record import config

OUTCOMES = ("refused", "read", "traceback", "hang", "other counts", "wrongly read", "wrongly refused")
COMMAND = ["--dataset", "folder", "--data_dir", "data", "--image_size", "8", "--layers", "20", "--batch_size", "4"]
COMMAND += ["--device", "cpu", "--threads", "1", "--quiet", "--dry_run"]


def make_folder(chance: random.Random) -> tuple[list[str], bool, list[str]]:
    """Make a data set in the folder data.

    Returns the names of its oddities, whether one of them spoils it, and the flags to read it with.
    """
    parts = chance.choice([("train", "test"), ("train",)])
    for part in parts:
        for name in ("cat", "dog"):
            for number in range(5):
                picture(Path("data", part, name, f"{number}.png"), chance)
    oddities = chance.sample(ODDITIES, min(len(ODDITIES), chance.choice([1, 1, 2, 3])))
    spoilt = [oddity(Path("data"), chance) == SPOILT for oddity in oddities]
    flags = [] if "test" in parts else ["--test_size", "0.3"]
    flags += ["--fit", chance.choice(["crop", "pad", "stretch"]), "--channels", chance.choice(["1", "3"])]
    return [oddity.__name__ for oddity in oddities], any(spoilt), flags


def class_folders(part: Path) -> Iterator[tuple[str, Path]]:
    """Yield the classes of a part, with their folders."""
    for child in part.iterdir() if part.is_dir() else ():
        if child.is_dir() and not child.name.startswith("."):
            yield unicodedata.normalize("NFC", child.name), child


def counted(root: Path, part: str) -> Counter:
    """Count the pictures of each class in a part, as the manual says: hidden ones are none, links count for what is new."""
    homes = {}  # whose the folders of classes are, by their real path
    for each in ("train", "test", "validation", "val"):
        homes |= {Path(os.path.realpath(folder)): (each, name) for name, folder in class_folders(root / each)}
    found: dict[str, set[Path]] = {}

    def gather(folder: Path, name: str, above: set[Path]) -> None:
        for child in folder.iterdir():
            real = Path(os.path.realpath(child))
            owner = next((homes[place] for place in (real, *real.parents) if place in homes), (part, name))
            if child.name.startswith(".") or child.name == "__MACOSX" or owner != (part, name):
                continue
            if child.is_dir() and real not in above:
                gather(child, name, above | {real})
            elif child.is_file() and child.suffix.lower() in PICTURES:
                found[name].add(real)

    for name, folder in class_folders(root / part):
        found.setdefault(name, set())
        gather(folder, name, {Path(os.path.realpath(folder)), *Path(os.path.realpath(folder)).parents})
    return Counter({name: len(pictures) for name, pictures in found.items()})


def difference(record: dict, root: Path) -> str:
    """Return where a run's record of its data disagrees with the count made here; empty where it does not."""
    said = {part: Counter(dict(zip(record["classes"], numbers, strict=True))) for part, numbers in record["images"].items()}
    wanted = {part: counted(root, part) for part in ("train", "test", "validation")}
    if not wanted["validation"]:  # held out from the training images
        said["train"] += said.pop("held_out", Counter())
    if not wanted["test"]:  # --test_size
        said["train"] += said.pop("test")
    pairs = {name: (said.get("held_out" if name == "validation" else name, Counter()), wanted[name]) for name in wanted}
    return "; ".join(f"{name}: {dict(read)}, not {dict(count)}" for name, (read, count) in pairs.items() if +read != +count)


def tried(chance: random.Random) -> tuple[str, str]:
    """Make a folder and read it; returns the outcome, and what there is to say about that."""
    names, spoilt, flags = make_folder(chance)
    records = []

    def instead_of_training(run, folder, rows) -> None:
        records.append(run.task.record())
        as_json(config(run))

    modeling.carry_out = instead_of_training
    how, said = outcome(Reader("no file", "", "", [*COMMAND, *flags], modeling_main))
    if how == "accepted":
        how, said = ("wrongly read", "") if spoilt else ("read", difference(records[0], Path("data")))
        how = "other counts" if said else how
    elif how == "refused" and not spoilt:
        how = "wrongly refused"
    return how, f"{', '.join(names)} by {' '.join(flags)}: {said[-600:]}"


@contextlib.contextmanager
def empty_place() -> Iterator[None]:
    """A new folder as the current one; the training that stands in for modeling's own is taken back at the end."""
    own, before = modeling.carry_out, Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            modeling.carry_out = own
            os.chdir(before)


def fuzz(folders: int, seed: int, tell: Callable[[str], object]) -> Counter:
    """Read so many folders; returns how many had each outcome, and tells those that went wrong."""
    counts = Counter()
    with empty_place():
        for number in range(folders):
            how, said = tried(random.Random(f"folder {seed} {number}"))
            counts[how] += 1
            if how in OUTCOMES[2:]:
                tell(f"{how}: folder {number} with {one_line(said)}")
            shutil.rmtree("data")
    return counts


def main(argv: list[str]) -> int:
    """Read so many folders as the command line says; returns 1 if something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folders", type=int, default=40, help="data sets (default 40)")
    parser.add_argument("--seed", type=int, default=0, help="of the data sets (default 0)")
    options = parser.parse_args(argv)
    began = time.monotonic()
    counts = fuzz(options.folders, options.seed, lambda line: print(line, file=sys.stderr, flush=True))
    print(f"| {' | '.join(OUTCOMES)} | seconds |\n|{'---|' * (len(OUTCOMES) + 1)}")
    print(f"| {' | '.join(str(counts[how]) for how in OUTCOMES)} | {time.monotonic() - began:.0f} |")
    return int(any(counts[how] for how in OUTCOMES[2:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
