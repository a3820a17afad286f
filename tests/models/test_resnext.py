"""These tests are about convolutions in groups: ResNeXts, and whole groups that leave them."""

import pytest
import torch
from conftest import TINY, run_program
from torch import nn
from toys import InGroups

import models
from deploy.folding import folded
from models import Card
from models.shapes import check_shapes
from pruning import accounting
from pruning.gates.scale import put_scales
from pruning.removal import Removal
from regularizers import group_lasso
from settings.errors import Refused
from settings.schema import Unfit

pytestmark = pytest.mark.core


def random_norms(network):
    """The network in float64 and evaluation mode, with batch norm away from its defaults."""
    torch.manual_seed(0)
    network = network.double().eval()
    for unit in network.all_units.values():
        if unit.norm is not None:
            nn.init.uniform_(unit.norm.weight, 0.5, 1.5)
            for tensor in (unit.norm.bias, unit.norm.running_mean):
                nn.init.uniform_(tensor, -0.5, 0.5)
            nn.init.uniform_(unit.norm.running_var, 0.5, 1.5)
    return network


def small():
    return random_norms(models.build("resnext11", classes=4))


def by_hand(groups: int, width: int, blocks: int, stem: int) -> int:
    """Parameters of a ResNeXt for ten classes, from its description."""
    total, inputs = 3 * 9 * stem + 2 * stem, stem
    for stage in range(3):
        inner, filters = groups * width * 2**stage, 4 * stem * 2**stage
        for block in range(blocks):
            total += inputs * inner + inner * (inner // groups) * 9 + inner * filters + 2 * (2 * inner + filters)
            total += 0 if block else inputs * filters + 2 * filters
            inputs = filters
    return total + inputs * 10 + 10


@pytest.mark.parametrize(("name", "groups", "width", "blocks", "stem"), [
    ("resnext29", 8, 64, 3, 64), ("resnext29(groups=16)", 16, 64, 3, 64), ("resnext11", 4, 8, 1, 16)
])  # fmt: skip
def test_it_has_as_many_parameters_as_described(name, groups, width, blocks, stem):
    with torch.device("meta"):
        network = models.build(name)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == by_hand(groups, width, blocks, stem)
    if stem == 64:  # 34.4 and 68.1 millions in table 7 of the paper, which has cut the digits behind
        assert count // 10**5 == {8: 344, 16: 681}[groups]


def test_macs_count_the_channels_of_a_group_alone():
    network = models.build("resnext11")
    pixels = accounting.positions(network, 32)
    assert network.stage2[0].conv2.weight.shape == (64, 16, 3, 3)
    whole = accounting.dense(network, 32)
    assert whole.macs == sum(unit.weight.numel() * pixels[name] for name, unit in network.all_units.items())
    assert pixels["stage2.0.conv2"] == 16 * 16


def without_groups(network, zeros: dict[str, list[int]]):
    """The network with learned scales of its groups; those in `zeros`, by unit, are 0."""
    put_scales(network, "group")
    for name, unit in network.units.items():
        if unit.gate is not None:
            unit.gate.scale.data.uniform_(0.5, 1.5)
            unit.gate.scale.data[zeros.get(name, [])] = 0
    return network


@pytest.fixture
def pair():
    """A network in which groups have the scale 0, one block has none left, and the smaller network."""
    network = without_groups(small(), {"stage1.0.conv2": [1], "stage2.0.conv2": [0, 3], "stage3.0.conv2": [0, 1, 2, 3]})
    return network, Removal(network).compact().eval()


@torch.no_grad()
def test_whole_groups_leave_exactly(pair):
    network, smaller = pair
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(smaller(x), network(x), rtol=0, atol=1e-10)
    first, second, third = (getattr(smaller, f"stage{n}")[0] for n in (1, 2, 3))
    assert (first.conv1.filters, first.conv2.layer.groups, tuple(first.conv2.weight.shape)) == (24, 3, (24, 8, 3, 3))
    assert first.conv3.weight.shape[1] == 24
    assert (second.conv1.filters, second.conv2.layer.groups, tuple(second.conv2.weight.shape)) == (32, 2, (32, 16, 3, 3))
    assert third.conv1.filters == third.conv2.filters == 0
    assert third.projection.filters == 256
    assert accounting.remaining(network, 32) == accounting.dense(smaller, 32)


@torch.no_grad()
def test_a_smaller_network_in_groups_is_written_read_and_folded(pair, tmp_path):
    _, smaller = pair
    smaller = smaller.float()
    x = torch.randn(2, 3, 32, 32)
    models.save(tmp_path / "model.pt", smaller, Card("resnext11", list("abcd"), 32, [0.0] * 3, [1.0] * 3))
    loaded = models.load(tmp_path / "model.pt")
    assert loaded.shapes() == smaller.shapes()
    torch.testing.assert_close(loaded(x), smaller(x))
    for align in (None, 16):
        torch.testing.assert_close(folded(smaller, align)(x), smaller(x), rtol=1e-4, atol=1e-4)


def test_shapes_of_groups_are_checked(pair):
    shapes = pair[1].shapes()
    assert shapes["units"]["stage1.0.conv2"] == [24, 8, 3]
    check_shapes(small(), shapes)
    for wrong in ([24, 8], [24, 8, 5], [24, 8, 3, 1]):
        with pytest.raises(Unfit, match=r"stage1\.0\.conv2"):
            check_shapes(small(), {**shapes, "units": {**shapes["units"], "stage1.0.conv2": wrong}})


@torch.no_grad()
def test_filters_at_zero_wait_for_their_group():
    """Group lasso sets single filters to 0: those of a group leave together."""
    network = small()
    block = network.stage1[0]
    for rows in (slice(0, 8), slice(10, 12)):  # the first group, and a part of the second one
        block.conv2.layer.weight[rows] = 0
    block.conv1.layer.weight[20] = 0
    group_lasso(network, 1.0, weight=1e-12)
    smaller = Removal(network).compact().eval()
    assert (smaller.stage1[0].conv1.filters, smaller.stage1[0].conv2.layer.groups) == (24, 3)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(smaller(x), network(x), rtol=0, atol=1e-10)


@torch.no_grad()
def test_a_group_leaves_behind_a_layer_that_is_no_block():
    network = without_groups(random_norms(InGroups()), {"grouped": [1]})
    smaller = Removal(network).compact().eval()
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(smaller(x), network(x), rtol=0, atol=1e-10)
    assert (smaller.stem.filters, smaller.grouped.filters, smaller.grouped.groups) == (3, 4, 1)
    again = InGroups().double()
    again.reshape(smaller.shapes())
    assert again.grouped.groups == 1


def test_a_run_takes_groups_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny = [*TINY[: TINY.index("--layers")], "--epochs", "2", "--batch_size", "18", "--arch", "resnext11"]
    run_program(*tiny, "--reg", "sss(of='group')", "--odecay", "2.6", "--lr", "0.2", "--compact", "--out_dir", "run")
    assert "result removal: the same outputs" in capsys.readouterr().out
    widths = models.load("run/model.pt").shapes()["units"]
    assert any(groups < 4 for _, _, *left in widths.values() for groups in left)


@pytest.mark.parametrize(("flags", "words"), [
    (["--arch", "resnext11(groups=0)"], "at least one group"),
    (["--arch", "resnext11", "--prune_type", "structured", "--prune_gate", "hard_concrete"], "each filter would have"),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(flags, words):
    with pytest.raises(Refused, match=words):
        run_program(*TINY[: TINY.index("--layers")], *flags)
