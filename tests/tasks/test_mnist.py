"""MNIST is read from files of its format, with their checksums."""

import gzip
import hashlib
import struct

import numpy as np
import pytest
from torchvision.datasets import MNIST

from settings.errors import Refused
from tasks.datasets import mnist
from tasks.datasets.digits import Digits


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """A folder with four small files like MNIST's, whose checksums are said to be the official ones."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    rng, resources = np.random.RandomState(0), []
    for part, images in (("train", 30), ("t10k", 20)):
        pixels, labels = rng.randint(0, 256, (images, 28, 28), dtype=np.uint8), (np.arange(images) % 10).astype(np.uint8)
        for name, content in (
            (f"{part}-images-idx3-ubyte", struct.pack(">iiii", 2051, images, 28, 28) + pixels.tobytes()),
            (f"{part}-labels-idx1-ubyte", struct.pack(">ii", 2049, images) + labels.tobytes()),
        ):
            (folder / name).write_bytes(content)
            packed = gzip.compress(content)
            (folder / f"{name}.gz").write_bytes(packed)
            resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(MNIST, "resources", resources)
    return folder


@pytest.mark.parametrize("named", [".", "MNIST"])
def test_its_images_are_read_as_they_are(raw, tmp_path, named):
    train, test, classes = mnist.MNIST(data_dir=str(tmp_path / named), image_size=28, channels=1).read()
    assert (train.pixels.shape, test.pixels.shape) == ((30, 28, 28, 1), (20, 28, 28, 1))
    wanted = np.frombuffer((raw / "t10k-images-idx3-ubyte").read_bytes()[16:], np.uint8)
    assert (test.pixels.numpy().ravel() == wanted).all()
    assert classes[3] == "3"
    assert len(classes) == 10
    assert test.labels[:12].tolist() == [*range(10), 0, 1]


def test_they_are_scaled_and_have_colours_if_asked_for(raw, tmp_path):
    train, _, _ = mnist.MNIST(data_dir=str(tmp_path)).read()
    assert train.pixels.shape == (30, 32, 32, 3)
    assert (train.pixels[..., 0] == train.pixels[..., 2]).all()


def test_other_files_are_refused(raw, tmp_path):
    packed = raw / "t10k-labels-idx1-ubyte.gz"
    packed.write_bytes(packed.read_bytes()[:-1] + b"x")
    with pytest.raises(Refused, match=r"t10k-labels-idx1-ubyte.gz' is missing, or not the official one"):
        mnist.MNIST(data_dir=str(tmp_path)).read()


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (32, 3)])
def test_digits_have_the_size_that_is_asked_for(size, channels):
    source = Digits(image_size=size, channels=channels)
    train, _, _ = source.read()
    assert train.pixels.shape == (1437, size, size, channels)
    assert source.inputs == (channels, size, size)
