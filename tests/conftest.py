"""What several tests share: a small residual network, and the repository's root on the path."""

import atexit
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # of several that share the cores; before torch is imported, and for what tests start
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

pytest.register_assert_rewrite("promises", "programs", "toys", "boxes")

import modeling  # noqa: E402
from deploy import latency, measure, use  # noqa: E402
from models import Joint, Network, Unit  # noqa: E402
from models.layers import conv_unit, initialise  # noqa: E402
from settings import arguments  # noqa: E402


def _tiny_images() -> Path:
    """Three classes of 16x16 images, coloured noise: 60 to train, of which 6 are held out, and 24 to test."""
    folder, noise = Path(tempfile.mkdtemp(prefix="tiny_images_")), np.random.RandomState(0)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for part, count in (("train", 20), ("test", 8)):
        for label, name in enumerate(("blue", "green", "red")):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = noise.randint(0, 200, (16, 16, 3))
                pixels[..., 2 - label] += 55
                Image.fromarray(pixels.astype(np.uint8)).save(folder / part / name / f"{number}.png")
    return folder


# flags of a run of two epochs, three steps each, that takes a second; with 3 classes ResNet-20 has 272,019 parameters
TINY_DATA = ["--dataset", "folder", "--data_dir", str(_tiny_images()), "--image_size", "16", "--device", "cpu"]
TINY = [*TINY_DATA, "--layers", "20", "--epochs", "2", "--batch_size", "18"]


class TwoBlocks(Network):
    """A stem and two residual blocks, small enough to remove filters by hand."""

    def __init__(self, width: int = 6, inner: int = 5, classes: int = 4):
        super().__init__()
        self.stem = conv_unit(3, width, 3)
        self.a1, self.a2 = conv_unit(width, inner, 3), conv_unit(inner, width, 3, activation=False)
        self.b1, self.b2 = conv_unit(width, inner, 3), conv_unit(inner, width, 3, activation=False)
        self.a, self.b = Joint(), Joint()
        self.classifier = Unit(torch.nn.Linear(width, classes), norm=False, activation=False)
        self.wire("stem", "input", "stream")
        for block in "ab":
            self.wire(f"{block}1", "stream", f"{block}1")
            self.wire(f"{block}2", f"{block}1", "stream", block)
        self.wire("classifier", "stream", "output")
        initialise(self)

    def forward(self, x):
        x = self.stem(x)
        x = self.a(self.a2(self.a1(x)), x)
        x = self.b(self.b2(self.b1(x)), x)
        return self.classifier(x.mean((2, 3)))


def narrow(network: Network, factor: int = 8) -> Network:
    """The network with so much fewer filters in each unit, freshly initialised: the same wiring in a hundredth of the time."""
    shapes = network.shapes()
    sources = {link.unit: link.source for link in network.links}
    targets = {link.unit: link.target for link in network.links}
    for name, (filters, inputs, *groups) in shapes["units"].items():
        filters = filters if targets[name] in network.outputs else max(filters // factor, 1)
        inputs = inputs if sources[name] == "input" else max(inputs // factor, 1)
        shapes["units"][name] = [filters, inputs, *(min(number, filters) for number in groups)]
    network.reshape(shapes)
    initialise(network)
    return network


def run_program(*flags):
    """The command in this process."""
    deterministic, argv, sys.argv = torch.are_deterministic_algorithms_enabled(), sys.argv, ["modeling.py", *flags]
    try:
        settings = arguments.parse(list(flags))
        (use.main if settings.use.evaluate or settings.use.predict else modeling.main)(settings)
    finally:
        sys.argv = argv
        torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(autouse=True)
def _signals():
    """Running the program in this process leaves pytest's own handlers in place."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _seed():
    """The same numbers whichever test comes first."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _unmeasured(request, monkeypatch):
    """How long networks take is measured only where a test is marked `measures`, and there in one round."""
    monkeypatch.setattr(latency, "MOST", 1)
    monkeypatch.setattr(latency, "WARM_UP", 1)
    if request.node.get_closest_marker("measures") is None:
        monkeypatch.setattr(measure, "timed", lambda *_: [])
        monkeypatch.setattr(measure, "timed_files", lambda *_: [])


@pytest.fixture
def voc(tmp_path):
    """A folder of 8 training and 4 test pictures with boxes, in VOC layout."""
    from boxes import voc_folder

    return voc_folder(tmp_path / "voc")


@pytest.fixture
def two_blocks():
    """The small network in float64, with batch norm's parameters and statistics away from their defaults."""
    torch.manual_seed(0)
    network = TwoBlocks().double()
    for unit in network.units.values():
        torch.nn.init.uniform_(unit.norm.weight, 0.5, 1.5)
        torch.nn.init.uniform_(unit.norm.bias, -0.5, 0.5)
        torch.nn.init.uniform_(unit.norm.running_var, 0.5, 1.5)
        torch.nn.init.uniform_(unit.norm.running_mean, -0.5, 0.5)
    return network


@pytest.fixture
def batch():
    """Sixteen float64 images of 8x8 with four classes."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(16, 3, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, 4, (16,), generator=generator)
