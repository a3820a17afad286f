"""These tests are about structures at exact zero: group lasso, Sparse Structure Selection, and their removal."""

import json

import pytest
import torch
from conftest import TINY, narrow, run_program
from torch import nn
from toys import TOYS, images_for, outputs_of, toy

import models
from models import Network, Unit
from pruning import accounting
from pruning.gates.scale import Scale, put_scales
from pruning.removal import Removal
from pruning.zeros import not_zero
from regularizers import group_lasso, sss
from settings.arguments import parse
from settings.errors import Refused
from settings.registry import NETWORKS

pytestmark = pytest.mark.core


class Single(Network):
    """One 1x1 convolution with these weights, a row for each filter, and a linear layer that reads it."""

    def __init__(self, rows):
        super().__init__()
        weight = torch.tensor(rows, dtype=torch.float64)
        self.unit = Unit(nn.Conv2d(weight.shape[1], len(weight), 1, bias=False), norm=False)
        self.last = Unit(nn.Linear(len(weight), 2), norm=False, activation=False)
        self.wire("unit", "input", "unit")
        self.wire("last", "unit", "output")
        self.double()
        self.unit.layer.weight.data = weight.view(*weight.shape, 1, 1)

    @property
    def rows(self):
        return self.unit.weight.detach().flatten(1).tolist()


@pytest.mark.parametrize(("amount", "row"), [(1.0, [2.4, 3.2]), (5.0, [0, 0]), (6.0, [0, 0])])
def test_a_row_shrinks_by_its_length(amount, row):
    network = Single([[3.0, 4.0], [0.0, 0.0]])
    group_lasso(network, 0.5, of="filter", weight=2 * amount)
    assert network.rows == [pytest.approx(row, abs=1e-15), [0, 0]]
    assert (row == [0, 0]) == (network.rows[0] == [0, 0])  # exactly


@pytest.mark.parametrize("of", ["channel", "shape"])
def test_a_column_shrinks_by_its_length(of):
    network = Single([[3.0, 6.0], [0.0, 8.0]])
    group_lasso(network, 1.0, of=of, weight=5.0)
    assert network.rows == [pytest.approx([0, 3]), pytest.approx([0, 4])]


def test_each_kind_of_group_is_the_part_of_the_weight_that_it_names(two_blocks):
    before = two_blocks.a1.weight.detach().clone()
    lengths = {
        "filter": before.square().sum((1, 2, 3), keepdim=True).sqrt(),
        "channel": before.square().sum((0, 2, 3), keepdim=True).sqrt(),
        "shape": before.square().sum(0, keepdim=True).sqrt(),
        "layer": before.square().sum().sqrt(),
        "block": (before.square().sum() + two_blocks.a2.weight.detach().square().sum()).sqrt(),
    }
    for of, length in lengths.items():
        two_blocks.a1.layer.weight.data = before.clone()
        state = {name: value.clone() for name, value in two_blocks.state_dict().items()}
        group_lasso(two_blocks, 0.1, of=of, weight=1.0)
        torch.testing.assert_close(two_blocks.a1.weight.detach(), before * (1 - 0.1 / length).clamp_min(0), rtol=0, atol=1e-12)
        assert torch.equal(two_blocks.stem.weight, state["stem.layer.weight"]) == (of in ("layer", "block"))
        two_blocks.load_state_dict(state)


def test_masked_filters_do_not_shrink(two_blocks):
    from pruning import OutputGate

    two_blocks.a1.gate = OutputGate((5,)).double()
    two_blocks.a1.gate.set(torch.tensor([True, False, True, True, True]))
    before = two_blocks.a1.weight.detach().clone()
    group_lasso(two_blocks, 0.1, weight=1.0)
    assert (two_blocks.a1.weight == before).flatten(1).all(1).tolist() == [False, True, False, False, False]


def shrunk(network, of: str, fraction: float = 0.4):
    """The network after a proximal step that sets about this fraction of the groups to 0, in evaluation mode."""
    torch.manual_seed(1)
    for unit in network.units.values():  # groups of different lengths
        unit.layer.weight.data *= torch.rand(unit.filters, unit.weight.shape[1], 1, 1, dtype=torch.float64)
    if of == "filter":
        lengths = torch.cat([unit.weight.detach().flatten(1).norm(dim=1) for unit in network.units.values()])
    elif of == "channel":
        lengths = torch.cat([unit.weight.detach().transpose(0, 1).flatten(1).norm(dim=1) for unit in network.units.values()])
    else:
        units = network.branches.values()
        sizes = [[unit.weight.detach().norm() for unit in branch] for branch in units]
        lengths = torch.stack(
            [torch.stack(s).norm() for s in sizes] if of == "block" else [size for branch in sizes for size in branch]
        )
    group_lasso(network, 1.0, of=of, weight=float(lengths.quantile(fraction)) + 1e-9)
    return network.eval()


def assert_removal_is_exact(network, images):
    with torch.no_grad():
        wanted = outputs_of(network(images))
        smaller = Removal(network).compact().eval()
        for before, after in zip(wanted, outputs_of(smaller(images)), strict=True):
            torch.testing.assert_close(after, before, rtol=0, atol=1e-10 * float(before.abs().max().clamp_min(1)))
        alive = not_zero(smaller)
        assert all(alive[name].all() for name in smaller.units)  # what was left the first time is left the second time
    return smaller


def small(name: str):
    """A network of models/ with an eighth of its filters, in float64, whose batch norm is away from its defaults."""
    torch.manual_seed(0)
    network = narrow(NETWORKS.get(name)(classes=4)).double().eval()
    for unit in network.all_units.values():
        if unit.norm is not None:
            nn.init.uniform_(unit.norm.weight, 0.5, 1.5)
            nn.init.uniform_(unit.norm.bias, -0.5, 0.5)
            nn.init.uniform_(unit.norm.running_mean, -0.5, 0.5)
            nn.init.uniform_(unit.norm.running_var, 0.5, 1.5)
    return network


CASES = [("resnet20", of) for of in ("filter", "channel", "layer", "block")] + [("vgg16", "filter"), ("vgg16", "channel")]


@pytest.mark.parametrize(("name", "of"), [*CASES, ("resnet50", "block")])
def test_what_group_lasso_zeroes_leaves_the_network_exactly(name, of):
    network = shrunk(small(name), of)
    whole = accounting.dense(network, 32)
    smaller = assert_removal_is_exact(network, torch.randn(3, 3, 32, 32, dtype=torch.float64))
    left, filters = accounting.dense(smaller, 32), sum(int(mask.sum()) for mask in not_zero(network).values())
    assert left.filters <= filters < whole.filters
    assert left.parameters < whole.parameters
    assert accounting.remaining(network, 32) == left


@pytest.mark.parametrize("name", TOYS)
def test_it_does_so_where_filters_are_tied_copied_or_read_by_several(name):
    network = shrunk(toy(name), "filter", 0.5)
    assert_removal_is_exact(network, images_for(network))


def test_a_filter_that_gives_a_constant_stays(two_blocks):
    two_blocks.a1.layer.weight.data[1] = 0
    assert not_zero(two_blocks)["a1"].all()
    two_blocks.a1.norm.weight.data[1] = two_blocks.a1.norm.bias.data[1] = 0
    assert not_zero(two_blocks)["a1"].tolist() == [True, False, True, True, True]


def test_a_channel_of_a_stream_leaves_only_if_nobody_reads_it(two_blocks):
    two_blocks.a1.layer.weight.data[:, 2] = two_blocks.b1.layer.weight.data[:, 2] = 0
    assert not_zero(two_blocks)["stem"].all()
    two_blocks.classifier.layer.weight.data[:, 2] = 0
    alive = not_zero(two_blocks)
    assert [alive[name].tolist().index(False) for name in ("stem", "a2", "b2")] == [2, 2, 2]
    assert_removal_is_exact(two_blocks.eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64))


@pytest.mark.parametrize("masked", [False, True])
def test_what_a_filter_at_zero_or_under_a_mask_read_is_not_read(two_blocks, masked):
    """The stream's channel 2 is read by one filter alone, which gives nothing: both leave in one removal."""
    two_blocks.classifier.layer.weight.data[:, 2] = 0
    two_blocks.b1.layer.weight.data[:, 2] = 0
    two_blocks.a1.layer.weight.data[[0, 2, 3, 4], 2] = 0
    assert not_zero(two_blocks)["stem"].all()
    if masked:
        from pruning import OutputGate

        two_blocks.a1.gate = OutputGate((5,)).double()
        two_blocks.a1.gate.set(torch.arange(5) != 1)
    else:
        two_blocks.a1.norm.weight.data[1] = two_blocks.a1.norm.bias.data[1] = 0
    smaller = assert_removal_is_exact(two_blocks.eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64))
    assert [smaller.get_submodule(name).filters for name in ("stem", "a1", "a2", "b1", "b2")] == [5, 4, 5, 5, 5]


def test_a_smaller_network_is_told_by_its_weights_and_not_by_its_joints():
    """The columns that a later penalty sets to 0 are not read, also where an index says that filters have been taken out."""
    network = scaled(small("resnet20"), "filter")
    smaller = Removal(network).compact().eval()
    assert any(joint.index is not None for joint in smaller.joints.values())
    smaller.stage2[1].conv2.layer.weight.data[:, 0] = 0
    gone = [name for name, mask in not_zero(smaller).items() if name in smaller.units and not mask.all()]
    assert gone == ["stage2.1.conv1"]
    again = assert_removal_is_exact(smaller, torch.randn(2, 3, 32, 32, dtype=torch.float64))
    assert again.stage2[1].conv1.filters == smaller.stage2[1].conv1.filters - 1


def test_the_steps_of_sss_are_the_published_ones():
    network = Single([[1.0], [1.0]])
    network.unit.gate = Scale(network.unit, 2)
    scale, v = network.unit.gate.scale, network.unit.gate.velocity
    scale.data = torch.tensor([1, 0.0005], dtype=torch.float64)
    for values, velocities in (([0.9031, 0], [-0.051, -0.001]), ([0.76489, 0], [-0.0969, -0.0019])):
        scale.grad = torch.tensor([0.5, 0.02], dtype=torch.float64)
        sss(network, 0.1, weight=0.01, momentum=0.9)
        torch.testing.assert_close(scale.detach(), torch.tensor(values, dtype=torch.float64), rtol=0, atol=1e-12)
        torch.testing.assert_close(v, torch.tensor(velocities, dtype=torch.float64), rtol=0, atol=1e-12)
        assert scale[1] == 0


def test_only_the_proximal_step_moves_scales():
    from training.build import build_optimizer, parameter_groups

    network = small("resnet20")
    put_scales(network, "block")
    network(torch.randn(2, 3, 32, 32, dtype=torch.float64)).square().sum().backward()
    training = parse(["--lr", "0.1"]).training
    optimizer = build_optimizer(network, training, "cpu")
    for group in optimizer.param_groups:  # as Experiment.set_learning_rate does
        group["lr"] = 0.1 * group.get("scale", 1.0)
    optimizer.step()
    _, scales = parameter_groups(network)
    assert len(scales["params"]) == 9
    assert scales["weight_decay"] == 0
    assert all((scale == 1).all() and scale.grad.abs().sum() > 0 for scale in scales["params"])


def scaled(network, of: str):
    """The network with scales of which about a third is 0 and the others are not 1."""
    put_scales(network, of)
    gates = [unit.gate for unit in network.all_units.values() if unit.gate is not None]
    for number, gate in enumerate(gates):
        values = torch.rand(gate.scale.shape, dtype=torch.float64) + 0.5
        values[(torch.arange(len(values)) + number) % 3 == 0] = 0
        gate.scale.data = values
    return network


@pytest.mark.parametrize(
    ("name", "of"), [("resnet20", "block"), ("resnet20", "filter"), ("resnet50", "block"), ("vgg16", "filter")]
)
def test_removal_is_the_scaled_network(name, of):
    network = scaled(small(name), of)
    whole = accounting.dense(network, 32)
    smaller = assert_removal_is_exact(network, torch.randn(3, 3, 32, 32, dtype=torch.float64))
    assert accounting.remaining(network, 32) == accounting.dense(smaller, 32)
    assert accounting.dense(smaller, 32).parameters < whole.parameters


@pytest.mark.parametrize("name", ["inverted", "dilated", "two outputs"])
def test_scales_of_filters_go_with_every_wiring(name):
    network = scaled(toy(name), "filter")
    if name == "inverted":  # a tied filter and its channel have scales of their own, and here one of them is 0
        for tied, source in (("depth1", "stem"), ("depth2", "expand")):
            units = network.all_units
            units[tied].gate.scale.data = units[source].gate.scale.data.clone()
    assert_removal_is_exact(network, images_for(network))


@pytest.mark.parametrize("name", ["resnet20", "vgg16"])
def test_a_network_of_which_a_whole_layer_has_been_taken_out_is_counted(name):
    network = small(name)
    put_scales(network, "filter")
    next(iter(network.units.values())).gate.scale.data.zero_()
    if name == "resnet20":
        for unit in network.units.values():
            unit.gate.scale.data.zero_()
    smaller = Removal(network).compact()
    assert accounting.remaining(smaller, 32) == accounting.remaining(network, 32) == accounting.dense(smaller, 32)


def test_a_block_whose_scale_is_zero_becomes_its_shortcut():
    network = small("resnet20")
    put_scales(network, "block")
    network.stage1[1].conv2.gate.scale.data.zero_()
    network.stage2[0].conv2.gate.scale.data.zero_()  # of a block with a projection, which stays
    smaller = assert_removal_is_exact(network, torch.randn(2, 3, 32, 32, dtype=torch.float64))
    assert [smaller.get_submodule(f"stage1.1.conv{n}").filters for n in (1, 2)] == [0, 0]
    assert [smaller.get_submodule(f"stage2.0.conv{n}").filters for n in (1, 2)] == [0, 0]
    assert smaller.stage2[0].projection.filters == 4


@pytest.mark.parametrize(
    ("reg", "alpha"), [("group_lasso(of='filter')", "20"), ("sss(of='block')", "2"), ("sss(of='filter')", "2")]
)
def test_a_run_takes_out_what_has_become_zero(tmp_path, monkeypatch, capsys, reg, alpha):
    monkeypatch.chdir(tmp_path)
    flags = ["--reg", reg, "--odecay", alpha, "--lr", "0.1", "--compact", "--finetune_epochs", "1", "--out_dir", "run"]
    run_program(*TINY, *flags)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert summary["removal"]["exact"]
    assert summary["left"]["filters"] < summary["dense"]["filters"]
    assert summary["left"]["parameters"] < summary["dense"]["parameters"]
    assert sum(rows[1]["kept_filters"].values()) == summary["dense"]["filters"] - rows[1]["cut"] < summary["dense"]["filters"]
    # a block that is taken out takes with it the filters that it alone read
    assert rows[2]["cut"] == summary["dense"]["filters"] - summary["left"]["filters"] >= rows[1]["cut"]
    smaller = models.load(tmp_path / "run" / "model.pt")
    assert accounting.dense(smaller, 16).parameters == summary["left"]["parameters"]
    assert "result removal: the same outputs" in capsys.readouterr().out


@pytest.mark.parametrize(("flags", "words"), [
    (["--arch", "vgg16", "--reg", "sss"], "residual blocks, and this network has none"),
    (["--layers", "20", "--reg", "sss(of='group')"], "groups, and this network has none"),
    (["--arch", "vgg16", "--reg", "group_lasso(of='layer')"], "residual branches, and this network has none"),
    (["--layers", "20", "--reg", "l1", "--compact"], "no effect without --prune_type"),
    (["--layers", "20", "--reg", "sss(of='weight')"], "is one of 'block', 'group', 'filter'"),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(flags, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match=words):
        run_program(*TINY[:-6], "--image_size", "32", *flags)
    assert list(tmp_path.iterdir()) == []
