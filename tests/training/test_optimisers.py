"""These tests are about optimisers by name, and the groups of parameters that they get."""

import pytest
import torch
from conftest import TINY, run_program

import modeling
from models.layers import Gate
from settings.arguments import parse
from settings.errors import Refused
from settings.registry import OPTIMISERS
from training.build import parameter_groups


def stepped(*flags):
    """The weights of the stem after one step."""
    run = modeling.start(parse([*TINY, "--amp", "off", *flags]))
    run.model.train()
    run.set_learning_rate(0, 0)
    modeling.train_step(run, *next(run.batches(0)))
    return run.model.stem.weight.detach().clone()


@pytest.mark.parametrize("name", OPTIMISERS.entries)
def test_every_optimiser_steps_and_goes_on_from_a_checkpoint(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [*TINY, "--optimizer", name, "--lr", "0.001", "--lr_schedule", "constant", "--quiet"]
    run_program(*flags, "--epochs", "1", "--out_dir", "half")
    run_program("--resume", "half", "--epochs", "2", "--quiet")
    run_program(*flags, "--out_dir", "same")
    half, same = (torch.load(f"{run}/checkpoint.pt", weights_only=True)["model"] for run in ("half", "same"))
    assert all(torch.equal(value, same[key]) for key, value in half.items())


def test_the_first_step_of_each_is_that_of_torch():
    run = modeling.start(parse([*TINY, "--amp", "off"]))
    run.model.train()
    _, terms = run.losses(*next(run.batches(0)))
    weight = run.model.stem.weight
    gradient = torch.autograd.grad(sum(terms.values()), weight)[0]
    before = weight.detach().clone()
    plain = before - 0.1 * (gradient + 0.01 * before)
    decay = ["--lr", "0.1", "--weight_decay", "0.01"]
    torch.testing.assert_close(stepped(*decay), plain, rtol=0, atol=1e-6)
    ahead = before - 0.1 * (1 + 0.9) * (gradient + 0.01 * before)
    torch.testing.assert_close(stepped(*decay, "--optimizer", "sgd(nesterov=True)"), ahead, rtol=0, atol=1e-6)
    # Adam's first step is lr * sign of the gradient, AdamW's decay is apart from it
    total = gradient + 0.01 * before
    adam = before - 0.1 * total / (total.abs() + 1e-8)
    torch.testing.assert_close(stepped(*decay, "--optimizer", "adam"), adam, rtol=0, atol=1e-4)
    adamw = before * (1 - 0.1 * 0.01) - 0.1 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(stepped(*decay, "--optimizer", "adamw"), adamw, rtol=0, atol=1e-4)
    for option in ("adam(beta1=0.5)", "adam(beta2=0.5)", "adam(eps=1.0)", "adamw(eps=1.0)"):
        run = modeling.start(parse([*TINY, "--optimizer", option]))
        plain = modeling.start(parse([*TINY, "--optimizer", option.split("(")[0]]))
        assert run.optimizer.defaults != plain.optimizer.defaults


def test_momentum_belongs_to_sgd():
    with pytest.raises(Refused, match="--momentum has no effect"):
        parse(["--optimizer", "adam", "--momentum", "0.5"])


@pytest.mark.parametrize("flags", [["adam(beta1=2.0)"], ["sgd(nesterov=True)", "--momentum", "0"]])
def test_options_that_torch_refuses_are_refused(flags):
    with pytest.raises(Refused, match=r"--optimizer |of optimiser 'adam' is a number of at least 0 and below 1"):
        modeling.start(parse([*TINY, "--optimizer", *flags]))


class Scale(Gate):
    """A gate that learns a factor for each filter, pushed to zero by its penalty, ten times as fast as the weights."""

    learning_rate = 10.0

    def __init__(self, filters: int):
        super().__init__()
        self.factors = torch.nn.Parameter(torch.ones(filters))

    def forward(self, unit, x):
        return x * self.factors.view(-1, 1, 1)

    def penalty(self):
        return 0.01 * self.factors.abs().sum()


def test_gates_that_learn_have_a_group_of_their_own_and_a_term_in_the_loss(two_blocks):
    assert len(parameter_groups(two_blocks)) == 1
    run = modeling.start(parse([*TINY, "--amp", "off", "--weight_decay", "0.5"]))
    run.model.stem.gate = gate = Scale(run.model.stem.filters)
    run.go_on_with(run.model)
    weights, gates = run.optimizer.param_groups
    assert gates["weight_decay"] == 0
    assert weights["weight_decay"] == 0.5
    assert len(weights["params"]) + len(gates["params"]) == len(list(run.model.parameters()))
    run.model.train()
    run.set_learning_rate(0, 0)
    assert gates["lr"] == 10 * weights["lr"]
    _, terms = modeling.train_step(run, *next(run.batches(0)))
    assert terms["gates"].item() == pytest.approx(0.01 * run.model.stem.filters)
    assert (gate.factors != 1).all()


class Quiet(Scale):
    """A gate that learns without a penalty."""

    penalty = Gate.penalty


def test_a_gate_that_learns_needs_no_penalty():
    run = modeling.start(parse([*TINY, "--amp", "off"]))
    run.model.stem.gate = Quiet(run.model.stem.filters)
    run.go_on_with(run.model)
    run.model.train()
    _, terms = modeling.train_step(run, *next(run.batches(0)))
    assert list(terms) == ["cross_entropy"]
    assert (run.model.stem.gate.factors != 1).all()


def test_a_proximal_step_follows_the_optimisers(tmp_path):
    flags = [*TINY, "--amp", "off", "--reg", "bn_l1_proximal", "--odecay", "2.0", "--lr", "0.2"]
    run, plain = (modeling.start(parse(each)) for each in (flags, [*flags[:-6], "--lr", "0.2"]))
    for each in (run, plain):
        each.model.train()
        each.set_learning_rate(0, 0)
        _, terms = modeling.train_step(each, *next(each.batches(0)))
        assert list(terms) == ["cross_entropy"]
    moved, before = run.model.stem.norm.weight, plain.model.stem.norm.weight
    torch.testing.assert_close(moved, before.sign() * (before.abs() - 0.4).clamp_min(0))
