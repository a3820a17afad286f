"""These tests say that the network gets the picture that a viewer shows, whatever mode and format it is stored in."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_DATA, run_program
from PIL import Image, ImageCms, ImageOps

import models
import tasks
from settings.arguments import parse
from settings.errors import Refused
from tasks.datasets.digits import Digits
from tasks.pictures import Unclear, formats, pixels_of, read_pictures, suffixes

DIGITS = Digits().read()[1]
GREY = DIGITS.pixels[:24, ..., 0].numpy()
COLOURS = np.random.RandomState(0).randint(0, 256, (3, 12, 12, 3)).astype(np.uint8).repeat(3, 1).repeat(3, 2)


def with_alpha(grey, mode="RGBA"):
    """Black ink whose opacity is what is missing to white: over white it looks like the picture."""
    ink = np.zeros_like(grey)
    return Image.fromarray(np.dstack([ink, 255 - grey] if mode == "LA" else [ink, ink, ink, 255 - grey]))


def lab(colours):
    profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    return ImageCms.profileToProfile(Image.fromarray(colours), *profiles, outputMode="LAB")


def stored_as(folder: Path, grey: np.ndarray) -> dict[str, Path]:
    """The same grey picture in files of every mode that a format can hold, by a name for each."""
    plain = Image.fromarray(grey)
    rgb = plain.convert("RGB")
    free = min({*range(1, 255)} - {*grey.flatten().tolist()})  # a value that stands for white
    holes = Image.fromarray(np.where(grey == 255, np.uint8(free), grey))
    palette, holes_of_palette = plain.convert("P"), holes.convert("P")
    holes_of_palette.putpalette([0 if value == free else value for value in range(256) for _ in "RGB"])
    wide = grey.astype(np.uint16) * 257
    pictures = {
        "plain.png": (plain, {}),
        "L.jpg": (plain, {"quality": 100}),
        "RGB.png": (rgb, {}),
        "RGB.bmp": (rgb, {}),
        "RGB.webp": (rgb, {"lossless": True}),
        "RGB.avif": (rgb, {"quality": 100}),
        "YCbCr.jfif": (rgb, {"format": "JPEG", "quality": 100}),
        "YCbCr.tif": (rgb.convert("YCbCr"), {}),
        "CMYK.tif": (rgb.convert("CMYK"), {}),
        "CMYK.jpg": (rgb.convert("CMYK"), {"quality": 100}),
        "LAB.tif": (lab(np.dstack([grey] * 3)), {}),
        "RGBX.tif": (rgb.convert("RGBX"), {}),
        "P.png": (palette, {}),
        "P.gif": (palette, {}),
        "P, transparent.png": (holes_of_palette, {"transparency": free}),
        "L, transparent.png": (holes, {"transparency": free}),
        "RGB, transparent.png": (holes.convert("RGB"), {"transparency": (free, free, free)}),
        "LA.png": (with_alpha(grey, "LA"), {}),
        "RGBA.png": (with_alpha(grey), {}),
        "RGBA.webp": (with_alpha(grey), {"lossless": True}),
        "RGBA.tif": (with_alpha(grey), {}),
        "I;16.png": (Image.fromarray(wide), {}),
        "I;16.tif": (Image.fromarray(wide), {}),
        "I;16B.tif": (Image.fromarray(wide.astype(">u2")), {}),
        "I.pgm": (Image.fromarray(wide.astype(np.int32)), {}),
        "I, bytes.tif": (Image.fromarray(grey.astype(np.int32)), {}),
        "I, 16 bits.tif": (Image.fromarray(wide.astype(np.int32)), {}),
        "F, fractions.tif": (Image.fromarray(grey.astype(np.float32) / 255), {}),
        "F, bytes.tif": (Image.fromarray(grey.astype(np.float32)), {}),
        "F, fractions.pfm": (Image.fromarray(grey.astype(np.float32) / 255), {}),
    }
    paths = {}
    for name, (picture, options) in pictures.items():
        picture.save(folder / name, **options)
        paths[name] = folder / name
    back = {Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270}
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientation to what turns the picture upright
    for orientation, turn in turns.items():
        turn = Image.Transpose(turn)
        exif = Image.Exif()
        exif[0x0112] = orientation
        for suffix in ("jpg", "png", "tif"):
            path = folder / f"orientation {orientation}.{suffix}"
            plain.transpose(back.get(turn, turn)).save(path, exif=exif, **({"quality": 100} if suffix == "jpg" else {}))
            paths[path.name] = path
    black_and_white = Image.fromarray((grey > 127).astype(np.uint8) * 255)
    black_and_white.convert("1").save(folder / "1.png")
    paths["1.png"] = folder / "1.png"
    return paths


# formats and colour spaces that round
LOSSY = {"L.jpg": 3, "RGB.avif": 4, "YCbCr.jfif": 3, "YCbCr.tif": 2, "CMYK.jpg": 3, "LAB.tif": 3}


def test_every_mode_gives_the_same_bytes(tmp_path):
    for number, grey in enumerate(GREY[:4]):
        (folder := tmp_path / str(number)).mkdir()
        for name, path in stored_as(folder, grey).items():
            wanted = np.where(grey > 127, 255, 0) if name == "1.png" else grey
            for channels in (1, 3):
                got = read_pictures([str(path)], 32, channels)[0].int().numpy()
                assert got.shape == (32, 32, channels)
                difference = np.abs(got - wanted[..., None].astype(int)).max()
                assert difference <= (3 if name.startswith("orientation") else LOSSY.get(name, 0)), (name, difference)


MEMORY = {  # modes that no file has, but a plugin or a conversion may
    "HSV": lambda rgb: rgb.convert("HSV"),
    "RGBa": lambda rgb: rgb.convert("RGBA").convert("RGBa"),
    "La": lambda rgb: rgb.convert("LA").convert("La"),
    "PA": lambda rgb: rgb.convert("RGBA").quantize(256).convert("PA"),
    "I;16B": lambda rgb: Image.frombytes("I;16B", rgb.size, (np.asarray(rgb.convert("L")).astype(">u2") * 257).tobytes()),
    "I;16L": lambda rgb: Image.frombytes("I;16L", rgb.size, (np.asarray(rgb.convert("L")).astype("<u2") * 257).tobytes()),
    "I;16N": lambda rgb: Image.frombytes("I;16N", rgb.size, (np.asarray(rgb.convert("L")).astype("=u2") * 257).tobytes()),
}


@pytest.mark.parametrize("mode", Image.MODES)
def test_every_mode_of_pillow_is_read(mode):
    """In colour where the mode has colours: as close to the original as the mode can tell."""
    colours = COLOURS[0]
    rgb = Image.fromarray(colours)
    grey = np.asarray(rgb.convert("L"))
    wide = {"F": (np.float32, 1), "I": (np.int32, 257), "I;16": (np.uint16, 257)}
    if mode in MEMORY:
        picture = MEMORY[mode](rgb)
    elif mode in wide:
        kind, factor = wide[mode]
        picture = Image.fromarray(grey.astype(kind) * np.array(factor, dtype=kind))
    else:
        picture = lab(colours) if mode == "LAB" else rgb.convert(mode)
    assert picture.mode == mode
    got = pixels_of(picture, 36).astype(int)
    if mode in ("1", "P", "PA"):  # dithered, and in few colours
        assert abs(got.mean() - colours.mean()) < 20
    else:
        coloured = len(picture.getbands()) > 2
        wanted = colours if coloured else grey[..., None]
        allowed = {"HSV": 8, "LAB": 40, "YCbCr": 4}.get(mode, 1)  # LAB of 8 bits holds no saturated colours
        assert np.percentile(np.abs(got - wanted.astype(int)), 90) <= allowed


def test_adobe_writes_cmyk_upside_down(tmp_path):
    """A JPEG of CMYK by Adobe's programs holds inverted values, which its marker says."""
    rgb = Image.fromarray(COLOURS[1])
    rgb.convert("CMYK").save(tmp_path / "a.jpg", quality=100, subsampling=0)
    assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()[:200]
    assert np.abs(read_pictures([str(tmp_path / "a.jpg")], 36)[0].int().numpy() - COLOURS[1]).mean() < 3


def test_what_is_transparent_is_white_before_it_is_scaled():
    """Half of a pixel in 2 x 2 is black and opaque: scaled to one, a quarter of the ink is left."""
    ink = np.zeros((2, 2, 4), dtype=np.uint8)
    ink[0, 0, 3] = 255
    ink[1, 1, :3] = 255
    assert pixels_of(Image.fromarray(ink), 1)[0, 0].tolist() == [192] * 3
    assert pixels_of(Image.fromarray(ink), 1, channels=1)[0, 0].tolist() == [192]


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (Image.fromarray(np.dstack([np.full((8, 8, 3), 255), np.arange(64).reshape(8, 8)]).astype(np.uint8)), "nothing is to be"),
        (Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)), "as RGB all pixels of this I;16 picture are the same"),
        (Image.fromarray(np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)), "mode F with values from -1 to 1"),
        (Image.fromarray(np.full((8, 8), np.nan, dtype=np.float32)), "mode F with values from nan to nan"),
        (Image.fromarray(np.arange(64, dtype=np.float32).reshape(8, 8) * 100), "mode F with values from 0 to 6300"),
        (Image.fromarray(np.arange(64, dtype=np.int32).reshape(8, 8) * 10**6), r"mode I with values from 0 to 6.3e\+07"),
        (Image.fromarray(np.arange(-9, 55, dtype=np.int32).reshape(8, 8)), "mode I with values from -9 to 54"),
    ],
)
def test_what_would_be_invisible_or_has_no_known_range_is_refused(picture, words):
    with pytest.raises(Unclear, match=words):
        pixels_of(picture, 8)


def test_what_has_no_contrast_of_its_own_is_read():
    for picture in (
        Image.new("RGB", (9, 5), (1, 2, 3)),
        Image.new("RGBA", (5, 5)),
        Image.new("P", (3, 3)),
        Image.new("I", (4, 4)),
    ):
        assert pixels_of(picture, 8).shape == (8, 8, 3)


def wide_picture():
    """Red, then 16 columns of green, then blue, 32 x 8."""
    pixels = np.zeros((8, 32, 3), dtype=np.uint8)
    pixels[:, :8, 0] = pixels[:, 8:24, 1] = pixels[:, 24:, 2] = 255
    return Image.fromarray(pixels)


def test_fit_says_what_becomes_of_the_sides():
    crop, pad, stretch = (pixels_of(wide_picture(), 8, fit=fit).astype(int) for fit in ("crop", "pad", "stretch"))
    assert (crop == [0, 255, 0]).all()
    assert (pad[[0, 1, 2, 5, 6, 7]] == 255).all()
    assert pad[3].argmax(1).tolist() == [0, 0, 1, 1, 1, 1, 2, 2]
    assert stretch[0].argmax(1).tolist() == [0, 0, 1, 1, 1, 1, 2, 2]
    assert (stretch == stretch[0]).all()
    thin = Image.new("L", (5000, 1), 0)
    assert pixels_of(thin, 16, channels=1, fit="pad").min(axis=(1, 2)).tolist() == [255] * 7 + [0] + [255] * 8
    tall = ImageOps.exif_transpose(wide_picture().transpose(Image.Transpose.ROTATE_90))
    assert (pixels_of(tall, 8, fit="pad")[:, [0, 7]] == 255).all()


def damaged(folder: Path) -> list[Path]:
    """Files that decoders stumble over, each in another way."""
    rgb = Image.fromarray(COLOURS[0])
    for name in ("a.png", "b.jpg", "c.tif", "d.gif", "e.webp", "f.bmp", "g.ico", "h.tga", "i.avif", "j.jp2", "k.qoi", "l.dds"):
        rgb.save(folder / name)
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 3])
    header = bytearray((folder / "f.bmp").read_bytes())
    struct.pack_into("<ii", header, 18, 2**30, 2**30)
    (folder / "bomb.bmp").write_bytes(header)
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no picture")
    (folder / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    return sorted(folder.iterdir())


def test_whatever_a_decoder_raises_the_file_is_named(tmp_path):
    for path in damaged(tmp_path):
        with pytest.raises(Refused, match=f"1 unreadable images: {path}$"):
            read_pictures([str(path)], 16)


@pytest.mark.parametrize("error", [MemoryError, struct.error, IndexError, RecursionError, Image.DecompressionBombError])
def test_no_error_of_a_decoder_escapes(error, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.new("L", (4, 4)).save(path)
    monkeypatch.setattr(Image.Image, "convert", lambda *_: (_ for _ in ()).throw(error("for a test")))
    with pytest.raises(Refused, match=f"1 unreadable images: {path}"):
        read_pictures([str(path)], 16)


def test_large_photographs_are_read_without_a_remark(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15)  # Pillow warns above it, and refuses above twice as many
    Image.new("L", (4, 4), 9).save(tmp_path / "a.png")
    assert read_pictures([str(tmp_path / "a.png")], 8).unique().tolist() == [9]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7)
    with pytest.raises(Refused, match=r"a\.png"):
        read_pictures([str(tmp_path / "a.png")], 8)


def test_a_damaged_orientation_turns_nothing(tmp_path):
    picture = wide_picture()
    picture.save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", quality=100)
    assert read_pictures([str(tmp_path / "a.jpg")], 8, fit="stretch")[0, 0].int().argmax(1).tolist() == [0, 0, 1, 1, 1, 1, 2, 2]


def test_the_formats_are_those_that_open():
    assert {"BMP", "GIF", "JPEG", "PPM", "PNG", "TIFF"} < {*formats()}
    assert {".gif", ".jfif", ".avif", ".jpg", ".png", ".webp", ".tif", ".tga"} <= suffixes()
    assert not {".eps", ".pdf", ".h5", ".mpg"} & suffixes()


def test_the_fit_of_training_is_that_of_testing_and_predicting(tmp_path, monkeypatch, capsys):
    """The colour that tells the classes apart is on the sides, which a crop cuts off."""
    monkeypatch.chdir(tmp_path)
    for part in ("train", "test"):
        for number, name in enumerate(("left", "right")):
            (folder := Path(part, name)).mkdir(parents=True)
            for image in range(6):
                pixels = np.full((16, 48, 3), 40 + image, dtype=np.uint8)
                pixels[:, : 12 if number == 0 else 48] *= 3
                Image.fromarray(pixels).save(folder / f"{image}.png")
    data = ["--dataset", "folder", "--data_dir", ".", "--image_size", "16", "--device", "cpu"]
    pads = tasks.load(parse([*data, "--fit", "pad"]).data, batch_size=8, seed=0, device="cpu")
    assert torch.equal(pads.test.pixels[0], read_pictures(["test/left/0.png"], 16, fit="pad")[0])
    assert not torch.equal(pads.test.pixels, tasks.load(parse(data).data, batch_size=8, seed=0, device="cpu").test.pixels)
    pruned = ["--prune_type", "structured", "--prune_rate", "0.3", "--compact", "--quiet"]
    run_program(*data, *TINY[len(TINY_DATA) :], *pruned, "--fit", "stretch", "--out_dir", "run")
    network = models.load("run/model.pt")
    assert network.card.fit == "stretch"
    told = next(line for line in capsys.readouterr().out.splitlines() if "test accuracy" in line)
    accuracy = told.split(": ")[1].split()[0]
    run_program("--evaluate", "run/model.pt", "--quiet")
    assert capsys.readouterr().out.startswith(f"result test accuracy: {accuracy}, ")
    run_program("--predict", "run/model.pt", "test/left/0.png", "--quiet")
    pixels = torch.from_numpy(pixels_of(Image.open("test/left/0.png"), 16, fit="stretch")).float()
    mean, std = torch.tensor(network.card.mean), torch.tensor(network.card.std)
    with torch.inference_mode():
        chances = network(((pixels - mean) / std).permute(2, 0, 1)[None])[0].softmax(0)
    best = chances.argmax()
    assert capsys.readouterr().out.startswith(f"test/left/0.png: {('left', 'right')[best]} {chances[best]:.4f}")
    with pytest.raises(Refused, match="--fit has no effect with --evaluate"):
        parse(["--evaluate", "run/model.pt", "--fit", "pad"])
    with pytest.raises(Refused, match="--fit has no effect on cifar10: it is for --dataset folder"):
        parse(["--fit", "pad"])
