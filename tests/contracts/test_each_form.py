"""Each form of a network, dense or pruned, is in a file that computes what the form does, and each option changes something."""

import copy

import pytest
import torch
from conftest import TwoBlocks
from toys import NoiseTask

import models
from deploy.int8_file import sums_exactly
from deploy.measure import plain
from models import Card
from pruning import Pruner
from pruning.removal import Removal
from settings.registry import FORMS

pytestmark = pytest.mark.core
CARD = Card("resnet20", list("abcd"), 8, [120.0] * 3, [60.0] * 3)
FEW = {"deep_compression": {"batches": 2}, "int8": {}}
# another value of each option, with the options that it needs
OTHERS = {
    "deep_compression": [
        {"conv_bits": 2},
        {"linear_bits": 2},
        {"index_bits": 1},
        {"batches": 3},
        {"lr": 0.1},
    ],
    "int8": [
        {"calibrate": 1},
        {"weight_bits": 7 if sums_exactly() else 8},
        {"train": True, "batches": 4},
        {"train": True, "batches": 5},
        {"train": True, "batches": 4, "lr": 0.01},
        {"train": True, "batches": 4, "delay": 0.75},
    ],
}


def pruned(kind: str) -> models.Network:
    torch.manual_seed(0)
    network = TwoBlocks().eval()
    if kind != "dense":
        Pruner(network, prune_type=kind, rate=0.4).update(0.4)
    return Removal(network).compact() if kind == "structured" else plain(network)


@pytest.fixture
def _two_blocks(monkeypatch):
    """What a file calls resnet20 is the small network."""
    monkeypatch.setattr("models.files.build", lambda name, classes, **_: TwoBlocks(classes=classes))


@pytest.mark.usefixtures("_two_blocks")
@pytest.mark.parametrize("kind", ["dense", "structured", "unstructured"])
@pytest.mark.parametrize("name", FORMS.entries)
def test_its_file_computes_what_it_does(name, kind, tmp_path):
    network = pruned(kind)
    form = FORMS.get(name, **FEW[name])(copy.deepcopy(network), NoiseTask())
    path = tmp_path / f"form{form.suffix}"
    size = form.save(path, CARD)
    assert size == path.stat().st_size
    assert 0 < sum(sum(bits.values()) for bits in form.bits().values()) < 8 * size
    again = form.read(path)
    assert again.card == CARD
    pixels = torch.randint(0, 256, (16, 8, 8, 3), dtype=torch.uint8)
    inputs = ((pixels.float() - 120) / 60).permute(0, 3, 1, 2)
    with torch.no_grad():
        exact, wanted, got = network(inputs), form.network(inputs), again(inputs)
    assert (got - wanted).abs().max() <= max(form.tolerance, 1e-5) * wanted.abs().max()
    assert 0 < (got - exact).abs().max() <= 0.5 * exact.abs().max()
    first = path.read_bytes()
    FORMS.get(name, **FEW[name])(copy.deepcopy(network), NoiseTask()).save(path, CARD)
    assert path.read_bytes() == first


def outcome(name: str, **options) -> list[torch.Tensor]:
    """The numbers of a form: what its network gives, and its bits."""
    form = FORMS.get(name, **FEW[name] | options)(pruned("unstructured"), NoiseTask())
    with torch.no_grad():
        outputs = form.network(NoiseTask().batch(7)[0])
    return [outputs, torch.tensor([sum(bits.values()) for bits in form.bits().values()])]


@pytest.mark.parametrize("name", FORMS.entries)
def test_each_option_changes_something(name):
    assert {option for options in OTHERS[name] for option in options} == FORMS.entries[name].options.keys()
    outcomes = [outcome(name), *(outcome(name, **options) for options in OTHERS[name])]
    for number, one in enumerate(outcomes):
        assert all(not all(map(torch.equal, one, other)) for other in outcomes[:number])


def test_the_table_names_each_form():
    assert OTHERS.keys() == FORMS.entries.keys()
