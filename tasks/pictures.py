"""This file turns any picture that Pillow reads into the bytes that the network gets, in training and prediction alike.

The bytes are the picture that a viewer shows, in grey or in colour: turned as its EXIF orientation says, and transparent
parts over a white ground. The rules for values of more than 8 bits are those of `_as_bytes`. Of an animation or a file of
several pages the first picture is read; colour profiles are not applied, but for LAB.
"""

import contextlib
import functools
import io
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from settings.errors import Refused
from settings.files import read_whole

GROUND = "white"
MOST = 1 << 32  # bytes of a picture's file
# Pillow knows these by name only, or (EPS) would start another program on a file of unknown origin
NOT_READ = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


class Unclear(ValueError):
    """A picture that can be decoded, but whose values do not say how bright it is; the message says why."""


@functools.cache
def formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that are read, those that it tries first in front."""
    from PIL import Image

    Image.preinit()  # the common formats, which so come first
    Image.init()
    return tuple(name for name in Image.ID if name not in NOT_READ)


@functools.cache
def suffixes() -> frozenset[str]:
    """Return the suffixes of files that are read, such as ".png", in lower case."""
    from PIL import Image

    names = set(formats())  # loads the formats, which then know their suffixes
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in names)


def read_pictures(paths: list[str], size: int, channels: int = 3, fit: str = "crop", quiet: bool = True) -> Tensor:
    """Read files as bytes (n, size, size, channels); see `pixels_of`. Refused, naming them, if some cannot be read.

    Several are read at a time, since decoders do not hold Python's lock. Not `quiet`, a bar on stderr shows how far it is
    and how much memory all of them will take, where that takes longer than a second.
    """
    from tqdm import tqdm

    pixels = np.empty((len(paths), size, size, channels), dtype=np.uint8)

    def read_one(number: int) -> str | None:
        """Fill in one picture; what is wrong with it is returned."""
        try:
            pixels[number] = read_picture(paths[number], size, channels, fit)
        except ValueError as error:
            return str(error)

    title = f"pictures, {pixels.nbytes / 1e6:.0f} MB in memory"
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # remarks on large or slightly damaged files that can be read all the same
        said = tqdm(pool.map(read_one, range(len(paths))), title, len(paths), leave=False, delay=1, disable=quiet)
        unreadable = [message for message in said if message is not None]
    if unreadable:
        raise Refused(f"{len(unreadable)} unreadable images: {', '.join(unreadable[:5])}")
    return torch.from_numpy(pixels)


def size_of(path: str) -> tuple[int, int]:
    """Return the width and height of a picture as it is shown, without decoding it. Refused if it is none, or is huge."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(read_whole(path, "picture", MOST)), formats=formats()) as picture:
                (width, height), turned = picture.size, picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        except Refused:
            raise
        except Image.DecompressionBombError:
            raise Refused(f"'{path}' is too large a picture: more than {2 * Image.MAX_IMAGE_PIXELS} pixels") from None
        except Exception:  # a decoder raises whatever it likes at a damaged file
            raise Refused(f"1 unreadable images: {path}") from None
    if width * height > Image.MAX_IMAGE_PIXELS:
        raise Refused(f"'{path}' is too large a picture: {width} x {height} pixels, more than {Image.MAX_IMAGE_PIXELS}")
    return (height, width) if turned else (width, height)


def read_picture(path: str, size: int | None, channels: int = 3, fit: str = "crop") -> np.ndarray:
    """Read one file as bytes (size, size, channels), or without a `size` (height, width, channels).

    ValueError, whose message is the path and why, if it cannot be read.
    """
    from PIL import Image

    try:
        content = io.BytesIO(read_whole(path, "picture", MOST))
        with Image.open(content, formats=formats()) as picture:
            return pixels_of(picture, size, channels, fit)
    except Unclear as error:
        raise ValueError(f"{path} ({error})") from None
    except Refused as error:  # no file that could be read, such as a pipe
        raise ValueError(str(error)) from None
    # a decoder raises whatever it likes at a damaged file, and Pillow at one that would be too large when decoded
    except Exception:
        raise ValueError(str(path)) from None


def pixels_of(picture, size: int | None, channels: int = 3, fit: str = "crop") -> np.ndarray:
    """Turn a PIL image into bytes (size, size, channels), in colour or, for one channel, in grey.

    `fit` says how it becomes a square: "crop" scales its shorter side to `size` and cuts out the centre, "pad" scales the
    longer side and fills up with the ground, "stretch" scales both. Without a `size` it stays as it is. Raises Unclear if its
    values have no known range, or if all of its contrast is lost; and whatever Pillow raises if it cannot be decoded.
    """
    picture.load()
    shown = _shown(_upright(picture), picture.format).convert("L" if channels == 1 else "RGB")
    if not _has_contrast(shown) and _has_contrast(picture):
        raise Unclear(f"nothing is to be seen of it: as {shown.mode} all pixels of this {picture.mode} picture are the same")
    square = shown if size is None else _square(shown, size, fit)
    return np.array(square).reshape(square.height, square.width, channels)


def _upright(picture):
    """Turn a picture as its EXIF orientation says."""
    from PIL import ImageOps

    with contextlib.suppress(Exception):  # viewers show a picture whose EXIF data are damaged as it is
        picture = ImageOps.exif_transpose(picture)
    return picture


def _shown(picture, file_format: str | None):
    """Turn a picture of any mode into what a viewer shows of it, with 8 bits a channel: a picture in mode L or RGB."""
    from PIL import Image

    if picture.mode == "F" or picture.mode.startswith("I"):
        return _as_bytes(picture, has_16_bits=picture.mode.startswith("I;16") or file_format in ("PNG", "PPM"))
    if picture.mode == "La":  # from which Pillow converts to nothing else
        picture = picture.convert("LA")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    colour = picture.info.get("transparency")
    if isinstance(colour, tuple) and max(colour) > 255:  # of 16 bits, while Pillow keeps the upper 8 of the pixels
        picture.info["transparency"] = tuple(value >> 8 for value in colour)
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, GROUND), picture).convert("RGB")


def _as_bytes(picture, has_16_bits: bool):
    """Turn a picture in a mode of more than 8 bits into bytes, a picture in mode L.

    Values of 16 bits (I;16 and its relatives; I, where the format has 16) keep their upper 8. Values of 32 bits (I, F) have
    no range of their own: floats in 0 to 1 are fractions of white; otherwise values in 0 to 255 are bytes, and whole numbers
    up to 65,535 have 16 bits. Raises Unclear for all others.
    """
    from PIL import Image

    values = np.asarray(picture)
    low, high, fractional = values.min(), values.max(), picture.mode == "F"
    if fractional and low >= 0 and high <= 1:
        shown = np.rint(values * 255)
    elif low >= 0 and high <= 255 and (fractional or not has_16_bits):
        shown = np.rint(values)
    elif low >= 0 and high <= 65535 and not fractional:
        shown = values >> 8
    else:  # also where a value is no number
        raise Unclear(f"mode {picture.mode} with values from {low:g} to {high:g}, of which nothing says what is white")
    shown = shown.astype(np.uint8)
    colour = picture.info.get("transparency")
    if isinstance(colour, int):
        shown = np.where(values == colour, np.uint8(255), shown)
    return Image.fromarray(shown)


def _has_contrast(picture) -> bool:
    """Return whether any two pixels of a picture differ in what they hold."""
    if picture.mode in ("P", "PA"):  # two entries of a palette may be the same colour
        picture = picture.convert("RGBA")
    values = np.asarray(picture)
    values = values[..., :3] if picture.mode == "RGBX" else values
    return bool((values != values[0, 0]).any())


def _square(picture, size: int, fit: str):
    """Scale a picture to a square; see `pixels_of`."""
    from PIL import Image, ImageOps

    if fit == "crop":
        return ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
    if fit == "stretch":
        return picture.resize((size, size), Image.Resampling.BILINEAR)
    if fit != "pad":
        raise ValueError(f"no such fit as {fit}")
    longer = max(picture.size)
    width, height = (max(round(size * side / longer), 1) for side in picture.size)
    square = Image.new(picture.mode, (size, size), GROUND)
    square.paste(picture.resize((width, height), Image.Resampling.BILINEAR), ((size - width) // 2, (size - height) // 2))
    return square


def listed(paths: list[Path]) -> str:
    """Return how many files of which suffix there are, such as "3 .txt, 1 .mp4", the commonest first."""
    counts: dict[str, int] = {}
    for path in paths:
        suffix = path.suffix.lower() or "without suffix"
        counts[suffix] = counts.get(suffix, 0) + 1
    return ", ".join(f"{number} {suffix}" for suffix, number in sorted(counts.items(), key=lambda item: (-item[1], item[0])))
