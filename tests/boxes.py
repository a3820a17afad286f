"""A small folder of pictures with boxes in VOC layout: coloured rectangles on noise, or one that a test spoils."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (20, 20, 220), "red": (220, 20, 20)}
# flags of a detector of a sixteenth of SSD's filters
DETECTOR = ["--dataset", "voc", "--arch", "ssd300_vgg16(width=0.03)", "--device", "cpu", "--amp", "off", "--batch_size", "3"]


def annotation(boxes: list[tuple]) -> str:
    """The XML of a picture's boxes: (name, left, top, right, bottom) each, and optionally a mark such as "difficult"."""
    objects = ""
    for name, *sides, mark in [(*box, "truncated") if len(box) == 5 else box for box in boxes]:
        pairs = zip(("xmin", "ymin", "xmax", "ymax"), sides, strict=True)
        corners = "".join(f"<{side}>{value}</{side}>" for side, value in pairs)
        objects += f"<object><name>{name}</name><{mark}>1</{mark}><bndbox>{corners}</bndbox></object>"
    return f"<annotation><size><width>1</width><height>1</height></size>{objects}</annotation>"


def voc_folder(folder: Path, train: int = 8, test: int = 4, size: tuple[int, int] = (90, 70)) -> Path:
    """Write pictures p000.png and on with one or two rectangles each, the first ones for training."""
    noise = np.random.RandomState(0)
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    names = [f"p{number:03d}" for number in range(train + test)]
    for number, name in enumerate(names):
        pixels = 200 + noise.randint(0, 30, (size[1], size[0], 3))
        boxes = []
        for place in range(1 + number % 2):
            width, height = noise.randint(25, 40, 2)
            left, top = noise.randint(0, size[0] - width), noise.randint(0, size[1] - height)
            colour = sorted(COLOURS)[(number + place) % 2]
            pixels[top : top + height, left : left + width] = COLOURS[colour]
            boxes.append((colour, left, top, left + width, top + height))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "JPEGImages" / f"{name}.png")
        (folder / "Annotations" / f"{name}.xml").write_text(annotation(boxes))
    (folder / "ImageSets/Main/trainval.txt").write_text("\n".join(names[:train]))
    (folder / "ImageSets/Main/test.txt").write_text("\n".join(names[train:]))
    return folder
