"""This file starts matplotlib for figures, with fonts that have the glyphs of all names in them.

Its own font has no Korean letters, for example: names in them were rows of boxes. Where another font of the machine has
them, that one is used too; where none has, one line on stderr says so.
"""

import functools
import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def drawing(*texts: str) -> Iterator:
    """Give matplotlib's pyplot, without a display, for figures that hold these texts."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    families, missing = families_for("".join(texts))
    with matplotlib.rc_context({"font.family": families}), warnings.catch_warnings():
        if missing:
            say_missing("".join(sorted(missing))[:20])
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # it is said already
        yield pyplot


def picture_of(figure, dpi: int) -> bytes:
    """The bytes of a figure's PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
    return buffer.getvalue()


def families_for(text: str) -> tuple[list[str], set[str]]:
    """The font families to set a text in: the usual one, then those that add a glyph; and the characters that none has."""
    import matplotlib
    from matplotlib import font_manager

    usual = matplotlib.rcParamsDefault["font.family"]
    path = font_manager.findfont(font_manager.FontProperties(family=usual))
    families, missing = list(usual), {letter for letter in text if letter.isprintable()} - glyphs_in(path, text)
    plain = [font for font in font_manager.fontManager.ttflist if font.style == "normal" and "Last Resort" not in font.name]
    for font in sorted(plain, key=lambda font: (str(font.weight) not in ("400", "normal"), font.name)):
        if not missing:
            break
        if glyphs := missing & glyphs_in(font.fname, "".join(missing)):
            families.append(font.name)
            missing -= glyphs
    return families, missing


def glyphs_in(path: str, text: str) -> set[str]:
    """The characters of a text that the font in a file has glyphs for; none where the file cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
    except (OSError, RuntimeError, ValueError):
        return set()
    return {letter for letter in text if font.get_char_index(ord(letter))}


@functools.cache
def say_missing(letters: str) -> None:
    """Say on stderr, once for the same letters, that figures have boxes in their place."""
    print(
        f"no font on this machine has glyphs for '{letters}': figures show boxes instead; for Korean, install "
        "fonts-nanum or another font that has them",
        file=sys.stderr,
    )
