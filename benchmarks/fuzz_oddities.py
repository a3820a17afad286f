"""This file holds the oddities of benchmarks/fuzz_folders.py: each is a function that puts one into a small data set.

An oddity takes the folder of the data set, which has train/ and mostly test/, and a random.Random. It returns SPOILT where
by the manual the data set must be refused; all others leave it one that must be read.
"""

import contextlib
import os
import random
import shutil
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

PICTURES = {".png", ".gif", ".jpg", ".bmp", ".tif", ".webp"}  # suffixes of the pictures that are made here
SPOILT = "spoilt"


def picture(path: Path, chance: random.Random, mode: str = "RGB", size: tuple[int, int] | None = None) -> None:
    """Write a picture of noise."""
    width, height = size or (chance.randint(2, 20), chance.randint(2, 20))
    noise = np.frombuffer(chance.randbytes(width * height * 3), np.uint8).reshape(height, width, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).convert(mode).save(path)


def a_class(root: Path, chance: random.Random) -> Path:
    """Return the folder of a class that every data set has, in some part."""
    return chance.choice([part / name for part in parts(root) for name in ("cat", "dog")])


def parts(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("t*") if path.is_dir())


def new_class(root: Path, name: str, chance: random.Random) -> None:
    """Make a class of this name in all parts."""
    for part in parts(root):
        for number in range(4):
            picture(part / name / f"{number}.png", chance)


def empty_class(root, chance):
    for part in parts(root):
        (part / "empty").mkdir()
    return SPOILT


def class_of_one_part(root, chance):
    new_class(root, "both", chance)
    shutil.rmtree(chance.choice(parts(root)) / "both")
    return SPOILT if len(parts(root)) > 1 else None


def one_image(root, chance):
    for part in parts(root):
        picture(part / "single" / "one.png", chance)


def hidden(root, chance):
    folder = a_class(root, chance)
    (folder / "._0.png").write_bytes(b"no picture")
    (folder / "Thumbs.db").write_bytes(b"no picture")
    picture(folder / ".cache" / "0.png", chance)
    picture(folder / "__MACOSX" / "0.png", chance)
    (root / "train" / ".ipynb_checkpoints").mkdir(exist_ok=True)


def link_to_outside(root, chance):
    picture(root / "pool" / "0.png", chance)
    for name in ("outside.png", "again.png"):
        (a_class(root, chance) / name).symlink_to(root.resolve() / "pool" / "0.png")


def link_to_own_picture(root, chance):
    folder = a_class(root, chance)
    (folder / "own.png").symlink_to(min(folder.glob("[0-9].png")).name)


def link_to_another_class(root, chance):
    """To a picture, or to a folder of pictures."""
    folder, other = a_class(root, chance), a_class(root, chance)
    picture(other / "deeper" / "0.png", chance)
    target = chance.choice([min(other.glob("[0-9].png")), other / "deeper"])
    (folder / f"0linked{target.suffix}").symlink_to(target.resolve())


def link_upwards(root, chance):
    folder = a_class(root, chance)
    (folder / "up").symlink_to(chance.choice([".", "..", "../..", str(root.resolve())]))


def link_in_a_circle(root, chance):
    folder = a_class(root, chance)
    for name, target in (("first", "second"), ("second", "first")):
        picture(folder / name / "0.png", chance)
        (folder / name / "on").symlink_to(f"../{target}")


def dangling_link(root, chance):
    folder = a_class(root, chance)
    target = chance.choice(["nowhere.png", "dangling.png"])  # the second one leads to itself
    (folder / "dangling.png").symlink_to(target)
    return SPOILT


def dangling_folder(root, chance):
    (a_class(root, chance) / "dangling").symlink_to("nowhere")
    (root / "train" / "dangling").symlink_to("nowhere")


def class_twice(root, chance):
    """Two classes are one folder: what is of both is of neither."""
    for part in parts(root):
        (part / "twin").symlink_to(min(path.name for path in part.iterdir() if path.is_dir() and path.name[0] != "."))
    return SPOILT


def linked_class(root, chance):
    for part in parts(root):
        picture(root / "pool" / part.name / "0.png", chance)
        (part / "elsewhere").symlink_to(root.resolve() / "pool" / part.name)


def unreadable(root, chance):
    if os.geteuid() == 0:  # who reads everything
        return None
    path = chance.choice([min(a_class(root, chance).glob("[0-9].png")), a_class(root, chance)])
    path.chmod(0)
    return SPOILT


def truncated(root, chance):
    path = min(a_class(root, chance).glob("[0-9].png"))
    path.write_bytes(path.read_bytes()[: chance.choice([0, 4, 20, 40])])
    return SPOILT


def no_picture(root, chance):
    folder = a_class(root, chance)
    (folder / chance.choice(["text.png", "text.jpg", "text.tif"])).write_bytes(chance.choice([b"hello", b"GIF89a", b"BM"]))
    return SPOILT


def other_files(root, chance):
    folder = a_class(root, chance)
    for name in ("notes.txt", "movie.mp4", "no suffix", "0.png.bak"):
        (folder / name).write_bytes(b"no picture")
    picture(root / "train" / "loose.png", chance)


def pipe(root, chance):
    os.mkfifo(a_class(root, chance) / "pipe.png")
    return SPOILT


def folder_named_as_a_picture(root, chance):
    picture(a_class(root, chance) / "folder.png" / "0.png", chance)


def modes(root, chance):
    folder = a_class(root, chance)
    for number, (mode, suffix) in enumerate(
        [("L", ".png"), ("RGBA", ".png"), ("P", ".gif"), ("CMYK", ".jpg"), ("1", ".bmp"), ("LA", ".png"), ("I;16", ".tif")]
    ):
        size = chance.choice([(2, 2), (2, 300), (301, 2), (64, 64)])
        if mode == "I;16":
            values = np.linspace(0, 65535, size[0] * size[1]).astype(np.uint16).reshape(size)
            Image.fromarray(values).save(folder / f"mode{number}{suffix}")
        else:
            picture(folder / f"mode{number}{suffix}", chance, mode, size)


def unicode_names(root, chance):
    new_class(
        root, chance.choice(["고양이", "Café", "two\nlines", " blank ", "\x1b[31m", "-rf", "a,b", "%s", "'\"", "val"]), chance
    )
    picture(a_class(root, chance) / chance.choice(["x\ny.png", "é.PNG", " .png", "-.png", "a b.Png"]), chance)


def two_spellings(root, chance):
    for form in ("NFC", "NFD"):
        new_class(root, unicodedata.normalize(form, "Straße é"), chance)


def no_encoding(root, chance):
    new_class(root, os.fsdecode(b"latin\xe9"), chance)


def long_names(root, chance):
    new_class(root, "c" * 255, chance)
    picture(a_class(root, chance) / ("p" * 251 + ".png"), chance)


def nested(root, chance):
    picture(a_class(root, chance).joinpath(*"abcdefghij" * chance.choice([1, 5])) / "0.png", chance)


def huge(root, chance):
    """A picture whose header declares far more pixels than there are."""
    side = chance.choice([13_000, 60_000, 2**31 - 1]).to_bytes(4, "big")
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", side + side + b"\x08\0\0\0\0"), (b"IDAT", zlib.compress(b"\0" * 99)), (b"IEND", b"")):
        content += len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    (a_class(root, chance) / "huge.png").write_bytes(content)
    return SPOILT


def held_out(root, chance):
    for name in sorted(path.name for path in (root / "train").iterdir() if path.is_dir()) if chance.random() < 0.8 else ["only"]:
        picture(root / "validation" / name / "0.png", chance)
    return None if (root / "validation" / "cat").exists() else SPOILT


def both_held_out(root, chance):
    for name in ("validation", "val"):
        picture(root / name / "cat" / "0.png", chance)
    return SPOILT


def too_deep(root, chance):
    """A picture in folders whose whole path is longer than the system takes at once."""
    place = os.open(a_class(root, chance), os.O_RDONLY)
    for _ in range(20):
        with contextlib.suppress(FileExistsError):
            os.mkdir("d" * 250, dir_fd=place)
        place, above = os.open("d" * 250, os.O_RDONLY, dir_fd=place), place
        os.close(above)
    os.close(os.open("0.png", os.O_CREAT, dir_fd=place))
    os.close(place)
    return SPOILT


ODDITIES: list[Callable] = [
    *(empty_class, class_of_one_part, one_image, hidden, link_to_outside, link_to_own_picture, link_to_another_class),
    *(link_upwards, link_in_a_circle, dangling_link, dangling_folder, class_twice, linked_class, unreadable, truncated),
    *(no_picture, other_files, pipe, folder_named_as_a_picture, modes, unicode_names, two_spellings, no_encoding, long_names),
    *(nested, huge, held_out, both_held_out, too_deep),
]
