"""These tests are about pruning methods as a whole: Network Slimming, Soft Filter Pruning, Dynamic Pruning with Feedback."""

import json

import pytest
import torch
from conftest import TINY, TwoBlocks, run_program
from promises import trains_and_resumes
from torch import nn

import models
from models import Network, Unit
from pruning import Pruner
from pruning.gates.soft import Soft
from pruning.gates.weight import Weight
from pruning.removal import Removal
from pruning.scopes import global_, local
from regularizers import bn_l1
from settings.arguments import parse
from settings.errors import Refused
from settings.registry import SCHEDULES
from training.stages import plan_of

pytestmark = pytest.mark.core


def test_the_subgradient_of_the_scales(two_blocks):
    two_blocks.a1.norm.weight.data = torch.tensor([0.5, -0.2, 0, 1, -1], dtype=torch.float64)
    bn_l1(two_blocks, weight=0.01).backward()
    wanted = torch.tensor([0.01, -0.01, 0, 0.01, -0.01], dtype=torch.float64)
    torch.testing.assert_close(two_blocks.a1.norm.weight.grad, wanted, rtol=0, atol=1e-15)


def test_slimming_plans_sparse_training_the_cut_and_as_much_training_again():
    settings = parse(["--recipe", "slimming", "--epochs", "160"])
    sparse, slim = plan_of(settings).stages
    assert (sparse.enter, sparse.epochs, sparse.lr, sparse.reg) == (("set_scales(value=0.5)",), 160, 0.1, None)
    assert (slim.enter, slim.epochs, slim.lr, slim.reg, slim.progress) == (("select", "remove"), 160, 0.1, "none", (0.0, 1.0))
    assert (settings.network.arch, settings.training.odecay, settings.ending.compact) == ("vgg19", 1e-4, True)
    assert plan_of(parse(["--recipe", "slimming", "--layers", "20"])).stages[0].enter
    assert parse(["--recipe", "slimming", "--layers", "20"]).network.arch == "resnet20"
    assert parse(["--recipe", "slimming", "--arch", "vgg16"]).network.arch == "vgg16"


def test_slimming_goes_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_program(*TINY, "--recipe", "slimming", "--epochs", "1", "--odecay", "0.01", "--out_dir", "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [row["stage"] for row in rows] == ["sparse training", "slim training"]
    assert ["bn_l1" in row["train"] for row in rows] == [True, False]
    # strictly above sorted[int(0.7 x 784)], one filter a layer staying
    (selection,) = summary["selections"]
    assert 500 <= selection["cut"] <= int(0.7 * 784) + 1
    assert (rows[0]["cut"], rows[1]["cut"]) == (0, 784 - summary["left"]["filters"])
    assert sum(rows[1]["kept_filters"].values()) == summary["left"]["filters"]
    assert models.load(tmp_path / "run" / "model.pt").shapes() != models.build("resnet20", classes=3).shapes()
    assert "result removal: the same outputs" in capsys.readouterr().out


def test_slimming_sets_no_scale_of_a_trained_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_program(*TINY, "--epochs", "1", "--out_dir", "dense")
    settings = parse(["--recipe", "slimming", "--init", "dense", "--epochs", "1"])
    assert plan_of(settings).stages[0].enter == ()


@pytest.mark.parametrize("flags", ["--prune_phase init", "--prune_freq 4it", "--prune_until 0.5", "--rounds 3"])
def test_slimming_says_itself_when_it_cuts(flags):
    with pytest.raises(Refused, match="slimming, which says itself when it cuts"):
        parse(["--recipe", "slimming", *flags.split()])


@pytest.mark.parametrize(("filters", "cut"), [(16, 4), (10, 3), (64, 19)])
def test_sfp_cuts_as_many_of_a_layer_as_the_authors(filters, cut):
    assert int((~local({"a": torch.rand(filters)}, 0.3)["a"]).sum()) == cut


class Filters(Network):
    """Filters of one weight each, without batch norm, and a linear layer."""

    def __init__(self, norms):
        super().__init__()
        self.unit = Unit(nn.Conv2d(1, len(norms), 1, bias=False), norm=False, activation=False)
        self.last = Unit(nn.Linear(len(norms), 2), norm=False, activation=False)
        self.wire("unit", "input", "unit")
        self.wire("last", "unit", "output")
        self.unit.layer.weight.data = torch.tensor(norms).view(-1, 1, 1, 1)

    def forward(self, x):
        return self.last(self.unit(x).mean((2, 3)))


def test_a_filter_that_was_set_to_zero_grows_again():
    network = Filters([3.0, 1.0, 2.0])
    pruner = Pruner(network, criterion="L2", scope="local", rate=0.5, gate="soft", until=1.0)
    pruner.begin(2, 3, lambda: [])
    assert pruner.before_step(0, 0)
    pruner.overwrite()
    weight = network.unit.layer.weight
    assert weight.flatten().tolist() == [3, 0, 2]
    optimizer = torch.optim.SGD([weight], 0.1)
    weight.grad = torch.tensor([0.0, -1.0, 0.0]).view(-1, 1, 1, 1)
    optimizer.step()
    assert weight.flatten().tolist() == pytest.approx([3, 0.1, 2])
    network.train()
    assert network.unit(torch.ones(1, 1, 1, 1)).flatten().tolist() == pytest.approx([3, 0.1, 2])  # training sees no mask
    network.eval()
    assert network.unit(torch.ones(1, 1, 1, 1)).flatten().tolist() == pytest.approx([3, 0, 2])
    weight.data[1] = 2.5
    assert pruner.after_epoch(0)  # what has grown stays, another one goes
    pruner.overwrite()
    assert weight.flatten().tolist() == pytest.approx([3, 2.5, 0])


def test_soft_masks_learn_like_no_masks_until_they_are_fixed(two_blocks, batch):
    images, labels = batch

    def gradients(network):
        network.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}

    plain = gradients(two_blocks)
    for unit in two_blocks.units.values():
        unit.gate = Soft(unit.filters).double()
        unit.gate.set(torch.arange(unit.filters) != 1)
        unit.gate.straight_through = True
    assert all(torch.equal(value, plain[name]) for name, value in gradients(two_blocks).items())
    for unit in two_blocks.units.values():
        unit.gate.straight_through = False
    fixed = gradients(two_blocks)
    assert (fixed["a1.layer.weight"][1] == 0).all()
    network = two_blocks.eval()
    smaller = Removal(network).compact().eval()
    torch.testing.assert_close(smaller(images), network(images), rtol=0, atol=1e-10)


def test_sfp_ends_every_epoch_with_a_pruned_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "build", lambda _, classes=10, **__: TwoBlocks(classes=classes))
    run_program(*TINY, "--recipe", "sfp", "--compact", "--finetune_epochs", "1", "--out_dir", "run")
    state = torch.load(tmp_path / "run" / "masked.pt", weights_only=True)["model"]
    for name in ("stem", "a1", "a2", "b1", "b2"):
        zero = (state[f"{name}.layer.weight"].flatten(1) == 0).all(1)
        assert torch.equal(zero, state[f"{name}.gate.mask"] == 0)
        assert int(zero.sum()) == 1  # floor(0.3 x 5 or 6)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["removal"]["exact"]


def test_sfp_resumes_to_the_same_bits(tmp_path, monkeypatch):
    trains_and_resumes(tmp_path, monkeypatch, "--recipe", "sfp", "--prune_type", "structured")


def test_feedback_recovers_the_weight_that_was_cut_too_early():
    unit = Unit(nn.Linear(2, 1, bias=False), norm=False, activation=False)
    unit.layer.weight.data = torch.tensor([[1.0, 0.4]])
    unit.gate = Weight((1, 2))
    unit.gate.set(torch.tensor([[True, False]]))
    unit.gate.straight_through = True
    optimizer = torch.optim.SGD([unit.layer.weight], 0.5)
    weights = unit(torch.eye(2)).flatten()
    (0.5 * (weights - torch.tensor([0.5, 2.0])).square().sum()).backward()
    assert unit.layer.weight.grad.flatten().tolist() == [0.5, -2]
    optimizer.step()
    assert unit.layer.weight.flatten().tolist() == pytest.approx([0.75, 1.4])
    keep = global_({"unit": unit.layer.weight.detach().abs()}, 0.5, normalise="none", floor=0)["unit"]
    assert keep.tolist() == [[False, True]]


def test_the_ramp_of_dpf():
    cubic = SCHEDULES.get("cubic(reach=1.0)")
    rates = [0.9 * cubic(progress, [0, 0.25, 0.5, 1.0]) for progress in (0, 0.25, 0.5, 1.0)]
    assert rates == pytest.approx([0, 0.5203125, 0.7875, 0.9], abs=1e-12)


def test_dpf_reaches_its_rate_at_the_second_drop_of_the_learning_rate():
    settings = parse(["--recipe", "dpf"])
    network = TwoBlocks()
    pruning = settings.pruning
    pruner = Pruner(
        network,
        criterion="L2",
        schedule=pruning.prune_schedule,
        rate=0.6,
        frequency=pruning.prune_freq,
        until=pruning.prune_until,
    )
    pruner.begin(4, 32, lambda: [])
    assert [round(update * 128) for update in pruner.updates] == [15, 31, 47, 63, 79, 95]
    due = [pruner.schedule(update, pruner.updates) for update in pruner.updates]
    assert due[-1] == 1
    assert due == sorted(due)
    assert pruner.updates[-1] == pytest.approx(0.75, abs=1 / 128)


def test_dpf_compares_filters_by_multiples_of_the_mean_and_weights_as_they_are():
    assert parse(["--recipe", "dpf"]).pruning.prune_scope == "global"
    of_weights = parse(["--recipe", "dpf", "--prune_type", "unstructured", "--prune_rate", "0.9"])
    assert of_weights.pruning.prune_scope == "global(normalise='none')"
    typed = parse(["--recipe", "dpf", "--prune_type", "unstructured", "--prune_scope", "local"])
    assert typed.pruning.prune_scope == "local"


@pytest.mark.parametrize("kind", ["structured", "unstructured"])
def test_dpf_trains(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "build", lambda _, classes=10, **__: TwoBlocks(classes=classes))
    run_program(
        *TINY, "--recipe", "dpf", "--batch_size", "3", "--prune_type", kind, "--lr", "0.01", "--epochs", "4", "--out_dir", "run"
    )
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert 0 < rows[0]["cut"] < rows[1]["cut"] <= rows[2]["cut"] == rows[3]["cut"]


def test_soft_masks_are_refused_where_masks_do_not_move():
    with pytest.raises(Refused, match="only --prune_phase dynamic moves them"):
        parse(["--prune_type", "structured", "--prune_gate", "soft", "--prune_phase", "init"])
