"""These tests hold supermasks against worked values, against the frequency of what is drawn, and against frozen weights."""

import pytest
import torch
from conftest import TINY_DATA, TwoBlocks, run_program
from torch import nn

from models import Unit
from pruning import Learner
from pruning.gates.supermask import Supermask
from pruning.removal import ungated
from settings.arguments import parse
from training.build import build_optimizer

pytestmark = pytest.mark.core


def gated(weight, scores=None, **options) -> Unit:
    """A linear unit in float64 with these weights and scores, without batch norm or ReLU."""
    weight = torch.tensor(weight, dtype=torch.float64)
    unit = Unit(nn.Linear(weight.shape[1], weight.shape[0]), norm=False, activation=False).double()
    unit.layer.weight.data = weight
    unit.gate = Supermask(unit, **options)
    if scores is not None:
        unit.gate.scores.data = torch.tensor(scores, dtype=torch.float64)
    return unit


def test_scores_begin_at_0_and_a_step_then_keeps_half_of_the_weights():
    gate = gated([[1.0] * 100] * 100).gate
    assert gate.scores.unique().tolist() == [0]
    drawn = gate.draw().detach()
    assert drawn.unique().tolist() == [0, 1]
    assert abs(drawn.mean() - 0.5) < 0.03  # six standard deviations
    gate.scores.data.fill_(1.3862944)  # sigmoid is 0.8
    assert abs(gate.draw().mean() - 0.8) < 0.024
    assert abs(gate.decide().double().mean() - 0.8) < 0.024


def test_the_gradient_is_straight_through():
    """Of y = (mask * W) x with scores s it is dL/ds = g x W sigmoid'(s), of what is drawn and of what is not."""
    weight, scores = [[0.5, -2.0, 3.0]], [[0.0, 1.0, -1.0]]
    unit = gated(weight, scores).train()
    x, g = torch.tensor([[1.0, 2.0, -1.0]], dtype=torch.float64), 0.7
    (g * unit(x)).sum().backward()
    kept = torch.sigmoid(torch.tensor(scores, dtype=torch.float64))
    wanted = g * x * torch.tensor(weight, dtype=torch.float64) * kept * (1 - kept)
    torch.testing.assert_close(unit.gate.scores.grad, wanted, rtol=0, atol=1e-12)
    assert unit.layer.weight.grad is None


def test_the_worked_signed_constant_and_the_rescaling():
    scores = [[9.0, 9.0, -9.0, 9.0]]
    unit = gated([[0.3, -0.1, 0.2, -0.4]], scores, constant=True, test="thresholded").eval()
    wanted = torch.tensor([[0.273861, -0.273861, 0.0, -0.273861]], dtype=torch.float64)
    torch.testing.assert_close(unit.weight_in_force, wanted, rtol=0, atol=1e-6)
    unit.gate.rescale = True
    torch.testing.assert_close(unit.weight_in_force, wanted * 4 / 3, rtol=0, atol=2e-6)
    unit = gated([[0.3, -0.1, 0.2, -0.4]], [[-9.0] * 4], rescale=True, test="thresholded")
    assert unit.weight_in_force.tolist() == [[0.0] * 4]  # none is kept, and nothing is divided by 0


def test_evaluation_keeps_by_one_draw_or_by_a_threshold():
    scores = [[-1.0, -0.1, 0.0, 0.1, 1.0]]
    assert gated([[1.0] * 5], scores, test="thresholded").gate.decide().tolist() == [[False, False, True, True, True]]
    gate = gated([[1.0] * 5], scores).gate
    assert gate.decide().tolist() == [
        [u <= p for u, p in zip(*gate.uniform.tolist(), *torch.sigmoid(gate.scores).tolist(), strict=True)]
    ]
    first = gate.decide()
    gate.scores.data += 1
    assert (gate.decide() | ~first).all()  # with one draw a larger score keeps more, never others


def test_only_scores_are_trained(batch):
    network = TwoBlocks()
    before = {name: value.clone() for name, value in network.named_parameters()}
    Learner(network, prune_type="unstructured", gate="supermask")
    settings = parse(["--prune_type", "unstructured", "--prune_gate", "supermask"])
    optimizer = build_optimizer(network, settings.training, "cpu")
    weights, scores = optimizer.param_groups
    assert weights["params"] == []
    assert (scores["weight_decay"], scores["scale"] * settings.training.lr) == (0, 100)
    network.train()
    torch.nn.functional.cross_entropy(network(batch[0].float()), batch[1]).backward()
    optimizer.step()
    after = dict(network.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all((value != 0).any() for name, value in after.items() if name not in before)
    plain = ungated(network)
    assert all(parameter.requires_grad for parameter in plain.parameters())
    torch.testing.assert_close(plain.eval()(batch[0].float()), network.eval()(batch[0].float()), rtol=0, atol=1e-5)


def test_a_run_tells_its_density_and_begins_at_a_half(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--arch", "lenet300", "--prune_type", "unstructured", "--prune_gate", "supermask(rescale=True, constant=True)"]
    run_program(*TINY_DATA, "--batch_size", "27", "--epochs", "1", "--quiet", *flags, "--out_dir", "run")
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("result prunable weights")]
    left, of = int(line.split()[3]), int(line.split()[5])
    assert 0.3 < left / of < 0.7


def test_the_command_of_the_manual_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_program(*TINY_DATA, "--layers", "20", "--prune_type", "unstructured", "--prune_gate", "supermask", "--dry_run")
