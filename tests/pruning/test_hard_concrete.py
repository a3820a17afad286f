"""These tests hold hard-concrete gates against worked values, against counting, and against networks without what is closed."""

import contextlib
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_DATA, TwoBlocks, narrow, run_program
from torch import nn
from toys import TOYS, Bottlenecks, images_for, outputs_of, toy

from models import Unit, build, load
from models.layers import conv_unit
from pruning import Learner, accounting
from pruning.gates.hard_concrete import HardConcrete
from pruning.removal import Removal
from training.statistics import recalibrate_statistics

pytestmark = pytest.mark.core


def gate_of(log_alpha, unit=None, **options) -> HardConcrete:
    """A gate in float64, on a unit of so many filters where none is given, with these log alpha."""
    log_alpha = torch.tensor(log_alpha, dtype=torch.float64)
    gate = HardConcrete(unit or conv_unit(2, len(log_alpha), 3).double(), **options)
    gate.log_alpha.data = log_alpha
    return gate


def test_the_worked_probabilities():
    gate = gate_of([-2.5, 0.0, 2.5])
    torch.testing.assert_close(gate.open().tolist(), [0.288762, 0.831822, 0.983675], rtol=0, atol=1e-6)
    # a million uniform numbers, evenly spaced, draw as often as the probabilities say
    uniform = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000
    drawn = gate.draw(uniform[:, None])
    torch.testing.assert_close((drawn > 0).double().mean(0), gate.open(), rtol=0, atol=2e-6)
    ones = (drawn == 1).double().mean(0).tolist()
    torch.testing.assert_close(ones, [0.016325, 0.168178, 0.711238], rtol=0, atol=2e-6)


def test_the_worked_gates():
    assert gate_of([0.4]).draw(torch.tensor([0.3], dtype=torch.float64)).item() == pytest.approx(0.305942, abs=1e-6)
    torch.testing.assert_close(gate_of([-2.5, 0.0, 2.5]).test().tolist(), [0.0, 0.5, 1.0], rtol=0, atol=1e-12)


def test_test_gates_are_0_and_1_exactly_from_log_11_on():
    edge = math.log(11)
    gates = gate_of([-edge - 1e-9, -edge + 1e-6, edge - 1e-6, edge + 1e-9])
    closed, nearly, almost, whole = gates.test().tolist()
    assert (closed, whole) == (0.0, 1.0)
    assert 0 < nearly < 1e-6
    assert 0 < 1 - almost < 1e-6
    assert gates.decide().tolist() == [False, True, True, True]


def test_a_new_gate_is_open_as_often_as_its_droprate_says():
    for droprate, middle in ((0.5, 0.0), (0.3, math.log(7 / 3))):
        start = HardConcrete(conv_unit(3, 2000, 1), droprate=droprate).log_alpha.detach()
        assert start.mean().item() == pytest.approx(middle, abs=1e-3)
        assert start.std().item() == pytest.approx(0.01, rel=0.1)
    for droprate in (0.0, 1.0, 1.5):
        with pytest.raises(ValueError, match="droprate is above 0 and below 1"):
            HardConcrete(conv_unit(3, 4, 1), droprate=droprate)


def test_the_expected_count_is_that_of_many_draws():
    gate = gate_of([-3.0, -1.0, 0.0, 1.0, 3.0], weight=1.0).train()
    gate.before_step(0.0, images=1)
    ones, draws = torch.ones(1, 5, 1, 1, dtype=torch.float64), 5_000
    counts = torch.stack([(gate(gate.unit, ones) != 0).sum() * 2 * 9 for _ in range(draws)]).double()
    error = counts.std() / draws**0.5
    assert (counts.mean() - gate.penalty()).abs() < 4 * error
    assert error < 0.006 * gate.penalty()


def test_the_penalty_counts_weights_per_image():
    """lambda / N |g| and decay / 2 ||w||^2, both times the probability that the gate is open."""
    gate = gate_of([-1.0, 0.5], weight=0.3, decay=0.02)
    gate.before_step(0.0, images=50)
    squares = gate.unit.weight.detach().square().flatten(1).sum(1)
    wanted = (gate.open() * (0.3 / 50 * 18 + 0.01 * squares)).sum()
    torch.testing.assert_close(gate.penalty(), wanted)


def test_a_bias_adds_to_the_penalty():
    """In the official code its term has the wrong sign."""
    penalties = []
    for bias in (False, True):
        gate = gate_of([0.0, 0.0], Unit(nn.Conv2d(2, 2, 3, bias=bias), norm=False).double(), weight=1.0)
        gate.before_step(0.0, images=1)
        penalties.append(gate.penalty())
    torch.testing.assert_close(penalties[1] - penalties[0], gate.open().sum())


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 4, 3, padding=1), nn.Linear(3, 4)], ids=["convolution", "linear"])
def test_training_draws_once_for_a_batch_and_keeps_the_bias(layer):
    """In the official code the training pass of a convolution has no bias."""
    unit = Unit(layer, norm=False).double().train()
    nn.init.constant_(layer.bias, 2.0)
    unit.gate = gate_of([-1.0, 0.0, 1.0, 2.0], unit)
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64) if unit.is_convolution else torch.randn(5, 3, dtype=torch.float64)
    torch.manual_seed(7)
    got = unit(x)
    torch.manual_seed(7)
    gates = unit.gate.draw(1e-6 + (1 - 2e-6) * torch.rand(4, dtype=torch.float64))
    assert gates.unique().numel() > 1
    torch.testing.assert_close(got, F.relu(layer(x)) * (gates.view(-1, 1, 1) if x.dim() == 4 else gates), rtol=0, atol=1e-12)
    assert not torch.equal(unit(x), got)


def test_log_alpha_is_clamped_before_a_step():
    gate = gate_of([-9.0, 0.25, 9.0])
    gate.before_step(0.0, images=1)
    torch.testing.assert_close(gate.log_alpha.tolist(), [math.log(0.01), 0.25, math.log(100)])


def test_a_gate_learns_by_the_loss_and_by_the_penalty(two_blocks, batch):
    learner = Learner(two_blocks, prune_type="structured", gate="hard_concrete")
    two_blocks.train()
    F.cross_entropy(two_blocks(batch[0]), batch[1]).backward()
    by_the_loss = torch.cat([gate.log_alpha.grad for gate in learner.gates.values()])
    assert (by_the_loss != 0).float().mean() > 0.5
    gate = learner.gates["a1"]
    gate.before_step(0.0, images=1)
    assert (torch.autograd.grad(gate.penalty(), gate.log_alpha)[0] > 0).all()


# a whole branch, a whole stage and a stream's first writer may close
CLOSED = {"some": None, "a branch": ["a2"], "before a branch's end": ["a1"], "the stem": ["stem"]}


def with_gates(network, on: str, closed=(), seed: int = 0) -> Learner:
    """Gates in every state on a network in float64: about a third of them closed, and all of some layers."""
    learner = Learner(network, prune_type="structured", gate=f"hard_concrete(on={on!r})")
    generator = torch.Generator().manual_seed(seed)
    for name, gate in learner.gates.items():
        gate.log_alpha.data = 4 * torch.randn(len(gate.log_alpha), generator=generator, dtype=torch.float64)
        if name in closed:
            gate.log_alpha.data.fill_(-4)
    return learner


def away_from_defaults(network):
    """The network in float64, whose biases, and batch norm's parameters and statistics, are not those of a fresh one."""
    for unit in network.double().all_units.values():
        if unit.layer.bias is not None:
            nn.init.uniform_(unit.layer.bias, -0.5, 0.5)
        if unit.norm is not None:
            for tensor, low, high in (("weight", -1.0, 1.5), ("bias", -0.5, 0.5), ("running_mean", -0.5, 0.5)):
                nn.init.uniform_(getattr(unit.norm, tensor), low, high)
            nn.init.uniform_(unit.norm.running_var, 0.5, 1.5)
    return network


def check_removal(network, images):
    """Removal leaves the outputs as they are, and what it leaves is what was counted."""
    network.eval()
    smaller = Removal(network).compact().eval()
    with torch.no_grad():
        for wanted, got in zip(outputs_of(network(images)), outputs_of(smaller(images)), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
            assert wanted.abs().max() > 0
    assert accounting.dense(smaller, images.shape[-1]) == accounting.remaining(network, images.shape[-1])
    return smaller


@pytest.mark.parametrize("on", ["filters", "inputs"])
@pytest.mark.parametrize("closed", CLOSED.values(), ids=CLOSED)
def test_closed_is_removed(two_blocks, batch, on, closed):
    two_blocks.eval()
    before = accounting.dense(two_blocks, 8)
    with_gates(two_blocks, on, closed or ())
    smaller = check_removal(two_blocks, batch[0])
    assert accounting.dense(smaller, 8).parameters < before.parameters


@pytest.mark.parametrize("on", ["filters", "inputs"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: narrow(Bottlenecks(), 4),
        TOYS["dilated"],
        lambda: narrow(build("lenet5", size=20), 4),
        lambda: narrow(build("resnet20", shortcut="pad"), 4),
    ],
    ids=["bottlenecks", "dilated", "lenet5", "padded shortcuts"],
)
def test_closed_is_removed_from_every_kind_of_network(make, on):
    network = away_from_defaults(make())
    for seed in range(3):
        with_gates(network, on, seed=seed)
        check_removal(network, images_for(network, size=20))
        for unit in network.all_units.values():
            unit.gate = None


def test_an_input_that_one_reader_closes_stays_for_the_other(two_blocks, batch):
    """Stream channels are read by a1, b1 and the classifier; a1's own are read by a2 alone."""
    learner = Learner(two_blocks, prune_type="structured", gate="hard_concrete(on='inputs')")
    for gate in learner.gates.values():
        gate.log_alpha.data.fill_(3.0)
    for name, channel in (("a1", 0), ("b1", 0), ("a2", 2), ("classifier", 1), ("b1", 1)):
        learner.gates[name].log_alpha.data[channel] = -3.0
    masks = accounting.filter_masks(two_blocks)
    assert masks["a1"].tolist() == [True, True, False, True, True]  # its only reader closes it
    assert masks["stem"].all()  # a1 reads channel 1, the classifier channel 0
    assert masks["a2"].tolist() == masks["b2"].tolist() == [True, False, True, True, True, True]  # nobody reads 1 after a2
    assert learner.cut() == 5
    check_removal(two_blocks, batch[0])
    assert accounting.kept_filters(two_blocks) == {"stem": 6, "a1": 4, "a2": 5, "b1": 5, "b2": 5}


def test_a_linear_layer_loses_what_its_reader_closes():
    network = away_from_defaults(build("lenet300", size=12)).eval()
    learner = with_gates(network, "inputs")
    smaller = check_removal(network, images_for(network, size=12))
    assert smaller.all_units["linear.0"].filters == int(learner.gates["linear.1"].decide().sum()) < 300


def test_recalibration_sees_the_gates_of_evaluation(two_blocks, batch):
    with_gates(two_blocks, "filters")
    recalibrate_statistics(two_blocks, [batch], contextlib.nullcontext)
    drawn_once = two_blocks.b1.norm.running_mean.clone()
    smaller = Removal(two_blocks).compact()
    recalibrate_statistics(smaller, [batch], contextlib.nullcontext)
    kept = accounting.filter_masks(two_blocks)["b1"]
    assert 0 < kept.sum() < 5
    torch.testing.assert_close(smaller.b1.norm.running_mean, drawn_once[kept], rtol=0, atol=1e-12)


@pytest.mark.parametrize("arch", ["lenet5", "vgg16", "resnet20"])
@pytest.mark.parametrize("on", ["filters", "inputs"])
def test_all_gates_may_close(arch, on):
    """Then nothing depends on the images any longer."""
    network = away_from_defaults(narrow(build(arch, size=32)))
    with_gates(network, on, closed=network.all_units)
    images = images_for(network, size=32)
    smaller = check_removal(network, images)
    assert not any(unit.filters for unit in smaller.units.values())
    assert (smaller(images) == smaller(images)[0]).all()


@pytest.mark.parametrize("name", ["depthwise", "two outputs"])
def test_filters_that_are_tied_to_channels_are_refused(name):
    with pytest.raises(ValueError, match="ties its filters to its channels"):
        Learner(toy(name), prune_type="structured", gate="hard_concrete")


@pytest.mark.parametrize("on", ["filters", "inputs"])
def test_a_trained_network_is_as_its_removed_one(batch, on):
    """In float64, after steps that close some gates and move the others."""
    network = TwoBlocks().double()
    learner = Learner(network, prune_type="structured", gate=f"hard_concrete(on={on!r}, weight=0.5)")
    learner.steps, learner.images = 1, 16
    optimizer = torch.optim.SGD(network.parameters(), 0.2)
    network.train()
    for step in range(40):
        learner.before_step(step, 0)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(batch[0]), batch[1]) + sum(gate.penalty() for gate in learner.gates.values())
        loss.backward()
        optimizer.step()
    assert 0 < learner.cut() < learner.entries
    check_removal(network, batch[0])


@pytest.mark.parametrize("on", ["filters", "inputs"])
def test_the_program_takes_out_what_is_closed(tmp_path, monkeypatch, capsys, on):
    monkeypatch.chdir(tmp_path)
    gate = f"hard_concrete(on={on!r}, droprate=0.915, weight=0.01)"
    flags = [*TINY_DATA, "--layers", "20", "--epochs", "1", "--batch_size", "18", "--quiet", "--amp", "off"]
    run_program(*flags, "--prune_type", "structured", "--prune_gate", gate, "--compact", "--out_dir", "run")
    lines = capsys.readouterr().out.splitlines()
    removal = next(line for line in lines if line.startswith("result removal: "))
    assert removal.startswith("result removal: the same outputs")
    filters = next(line for line in lines if line.startswith("result filters: "))
    assert 0 < int(filters.split()[2]) < 784
    assert lines[0] == "prune rate 0.0 regularization odecay 0.0"
    smaller = load("run/model.pt")
    assert sum(unit.filters for unit in smaller.units.values()) == int(filters.split()[2])
