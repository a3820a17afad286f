"""This file reads annotations of boxes in the layout of PASCAL VOC (Everingham et al., 2010): an XML file for each picture."""

from pathlib import Path
from xml.etree import ElementTree

from settings.errors import Refused
from settings.files import read_whole
from tasks.boxes import CROWD, DIFFICULT, PLAIN

MOST = 1 << 24  # bytes of an annotation

Box = tuple[str, float, float, float, float, int]


def read_annotation(path: Path) -> list[Box]:
    """Return the boxes of a picture: (name, left, top, right, bottom in pixels, mark) each.

    Coordinates are taken as they are, as edges between pixels. Refused, by one sentence, where the file is missing or broken,
    or an object has no name or no four sides.
    """
    content = read_whole(path, "annotation", MOST)
    if b"<!ENTITY" in content:  # which could make a small file large
        raise Refused(f"'{path}' is no annotation: it declares entities")
    try:
        root = ElementTree.fromstring(content)
        return [_box(element) for element in root.iter("object")]
    except ElementTree.ParseError as error:
        raise Refused(f"'{path}' is no annotation: broken XML, {error}") from None
    except ValueError as error:
        raise Refused(f"'{path}' is no annotation: {error}") from None


def _box(element) -> Box:
    """Return one object of an annotation. ValueError, which says what is missing, if it has no name or no four finite sides."""
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("an object without a name")
    sides = []
    for side in ("xmin", "ymin", "xmax", "ymax"):
        text = element.findtext(f"bndbox/{side}")
        try:
            sides.append(float(text))
        except (TypeError, ValueError):
            raise ValueError(f"'{name}' has no number {side}") from None
        if not abs(sides[-1]) < 1e9:  # nor one that is not finite
            raise ValueError(f"'{name}' has {side} {text}")
    if any(_says(element, word) for word in ("crowd", "iscrowd")):
        return (name, *sides, CROWD)
    return (name, *sides, DIFFICULT if _says(element, "difficult") else PLAIN)


def _says(element, word: str) -> bool:
    """Return whether an object has a mark of this name that is not 0."""
    return (element.findtext(word) or "0").strip() not in ("", "0")
