"""These tests hold what a ticket's cut weights are in place of 0: their values, that nothing trains them, and that they count."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY_DATA, TwoBlocks, run_program
from promises import trains_and_resumes

import modeling
import models
from pruning import accounting
from pruning.collapse import collapse
from pruning.gates.weight import Weight
from runs.console import round_line
from settings.arguments import parse
from settings.errors import Refused
from training.earlier_networks import read_network
from training.initial_values import held_values
from training.tickets import cut_round, shrunk_by, state_of, unpacked, weights_of

pytestmark = pytest.mark.core

FLAGS = [*TINY_DATA, "--batch_size", "27", "--quiet", "--deterministic", "--prune_type", "unstructured", "--epochs", "1"]
FLAGS += ["--weight_decay", "0.1"]
# of the worked weights the third alone is nearer to 0 than at the beginning
INITIAL, FINAL = torch.tensor([[0.1, -0.5, 0.3, -0.2]]), torch.tensor([[-0.4, -0.6, 0.1, 0.25]])
SHRUNK = torch.tensor([[False, False, True, False]])


@pytest.fixture
def ticket(tmp_path, monkeypatch):
    """The folder of a run of two rounds of a small network, whatever the flags name."""
    monkeypatch.setattr(models, "build", lambda _, classes=10, **__: TwoBlocks(classes=classes))
    monkeypatch.chdir(tmp_path)
    run_program(*FLAGS, "--procedure", "rounds(n=2, fraction=0.4)", "--out_dir", "rounds")
    return "rounds"


def control(options: str) -> list[str]:
    return ["--procedure", f"control(of='rounds', {options})"]


def tickets(folder: str) -> dict:
    return torch.load(Path(folder, "checkpoint.pt"), weights_only=True)["tickets"]


@pytest.mark.parametrize(
    ("pruned", "mask", "wanted"),
    [
        ("initial", [True, True, False, False], [0, 0, 0.3, -0.2]),
        ("grown", [True, True, False, False], [0, 0, 0, -0.2]),
        ("grown_all", [False, True, True, False], [0.1, 0, 0, -0.2]),
    ],
)
def test_the_worked_values(pruned, mask, wanted):
    assert torch.equal(INITIAL.abs() > FINAL.abs(), SHRUNK)
    assert torch.equal(held_values(pruned, INITIAL, torch.tensor([mask]), SHRUNK), torch.tensor([wanted]))


def test_what_is_held_is_in_force_and_has_no_gradient():
    gate, weight = Weight((1, 4)), FINAL.clone().requires_grad_()
    gate.set(torch.tensor([[True, True, False, False]]))
    gate.hold(torch.tensor([[0, 0, 0, -0.2]]))
    gate.weight(weight).sum().backward()
    assert torch.equal(gate.weight(weight), torch.tensor([[-0.4, -0.6, 0, -0.2]]))
    assert torch.equal(weight.grad, torch.tensor([[1.0, 1, 0, 0]]))
    assert torch.equal(gate.decide(), torch.tensor([[True, True, False, True]]))
    gate.set(torch.zeros(1, 4))
    assert gate.live.tolist() == [1]


def test_what_was_cut_is_nearer_to_zero_or_not_as_it_was_when_it_was_cut(ticket):
    """Of the worked weights in the classifier; those that are cut decay from then on, which says nothing of them."""
    run = modeling.start(parse([*FLAGS, "--procedure", "rounds(n=2, fraction=0.4)"]))
    name, gate = "classifier", run.pruner.gates["classifier"]
    weight, rows = run.pruner.units[name].weight.detach(), gate.mask.shape[0]
    weight[:, :4] = INITIAL
    run.tickets.states["0it"] = state_of(run)
    weight[:, :4] = FINAL
    run.tickets.shrunk += shrunk_by(run)
    assert torch.equal(unpacked(run, run.tickets.shrunk[0])[name][:, :4], SHRUNK.expand(rows, 4))
    assert not unpacked(run, run.tickets.shrunk[0])[name][:, 4:].any()  # which has not moved
    cut_round(run.pruner, 1, 0.5, 1.0)
    gate.set(torch.tensor([True, True, False, False, True, True]).expand(rows, 6))
    weight.mul_(0.01)
    run.tickets.masks.append({})
    run.tickets.shrunk += shrunk_by(run)
    wanted = torch.tensor([True, True, True, False, True, True])
    assert torch.equal(unpacked(run, run.tickets.shrunk[1])[name], wanted.expand(rows, 6))
    run.tickets.masks.append({})
    run.tickets.masks.append({})
    assert shrunk_by(run) == []  # of a round before nothing is known


@pytest.mark.parametrize(
    ("kind", "pruned"),
    [
        ("run", "initial"),
        ("run", "grown"),
        ("run", "grown_all"),
        ("random", "initial"),
        ("reinitialise", "initial"),
        ("signed_constant", "grown_all"),
    ],
)
def test_cut_weights_are_held_and_count(ticket, kind, pruned):
    """In each round; neither momentum nor decay moves them, and kept weights begin as `kind` says."""
    run = modeling.start(parse([*FLAGS, *control(f"kind={kind!r}, pruned={pruned!r}")]))
    began, kept_before = tickets(ticket)["states"]["0it"]["model"], None
    for number in (1, 2):
        shrunk, masks = (unpacked(run, tickets(ticket)[name][number - 1]) for name in ("shrunk", "masks"))
        assert any(mask.any() for mask in shrunk.values())
        assert any((~shrunk[name] & ~mask).any() for name, mask in masks.items())
        now = weights_of(run.model)
        for name, unit in run.pruner.units.items():
            mask, weight, begin = unit.gate.mask.bool(), f"{name}.layer.weight", began[f"{name}.layer.weight"]
            assert int(mask.sum()) == int(masks[name].sum())
            begin = now[weight] if kind == "reinitialise" else begin
            holds = ~mask if pruned == "initial" else ~mask & ~shrunk[name]
            assert torch.equal(unit.gate.held, begin.where(holds, 0))
            assert torch.equal(unit.gate.decide(), mask | holds)
            zeroed = shrunk[name] & mask if pruned == "grown_all" else torch.zeros_like(mask)
            assert (now[weight][zeroed] == 0).all()
            if kind == "run":
                assert torch.equal(now[weight], begin.masked_fill(zeroed, 0))
        kept = {name: gate.mask.bool().clone() for name, gate in run.pruner.gates.items()}
        assert kept_before is None or all((kept_before[name] | ~mask).all() for name, mask in kept.items())
        held = {name: gate.held.clone() for name, gate in run.pruner.gates.items()}
        inputs, targets = next(iter(run.batches(0)))
        for _ in range(20):
            modeling.train_step(run, inputs, targets)
        for name, unit in run.pruner.units.items():
            assert torch.equal(unit.weight_in_force[~kept[name]], held[name][~kept[name]])
            assert not torch.equal(unit.weight_in_force[kept[name]], now[f"{name}.layer.weight"][kept[name]])
        kept_before = kept
        zeros = sum(int((unit.weight_in_force == 0).sum()) for unit in run.pruner.units.values())
        assert accounting.zeros(run.model)[0] == run.pruner.cut() == zeros
        assert (zeros == 0) == (pruned == "initial")
        left, whole = accounting.remaining(run.model, 16), accounting.dense(run.model, 16)
        assert (left.macs == whole.macs) == (left.parameters == whole.parameters) == (zeros == 0)
        assert sum(layer["left"] for layer in accounting.connections(run.pruner.units).values()) == run.pruner.entries - zeros
        assert collapse(run.model) == {"empty": [], "connected": True}
        run.enter(run.stage + 1)
    last = run.results["rounds"][-1]
    assert last["density"] == 1 - zeros / run.pruner.entries
    assert last["trained"] == sum(int(mask.sum()) for mask in kept.values()) / run.pruner.entries == pytest.approx(0.36, abs=0.01)
    said = f"round 2: density {100 * last['density']:.2f} % ({100 * last['trained']:.2f} % trained), accuracy"
    assert round_line(last, "accuracy").startswith(said)


@pytest.mark.parametrize("at", [1, 3])
def test_killed_and_resumed_it_ends_alike(ticket, tmp_path, monkeypatch, at):
    (tmp_path / "again").mkdir()
    flags = [
        "--prune_type",
        "unstructured",
        "--weight_decay",
        "0.1",
        "--procedure",
        "control(of='../rounds', kind='run', pruned='grown')",
    ]
    state = trains_and_resumes(tmp_path / "again", monkeypatch, *flags, at=at)
    assert any((value != 0).any() for name, value in state["model"].items() if name.endswith("gate.held"))


def test_files_hold_what_is_in_force(tmp_path, monkeypatch):
    """A model.pt, a form and a checkpoint give what the network that was trained does, and its zeros are the only ones."""
    monkeypatch.chdir(tmp_path)
    run_program(*FLAGS, "--layers", "20", "--procedure", "rounds(n=1, fraction=0.4)", "--out_dir", "rounds")
    asked = [*control("kind='run', pruned='grown'"), "--form", "deep_compression(batches=0)", "--export", "network.pt2"]
    run_program(*FLAGS, "--layers", "20", *asked, "--out_dir", "held")
    (network, *_), saved = read_network("held/checkpoint.pt"), models.load("held/model.pt")
    state, zeros = torch.load("held/checkpoint.pt", weights_only=True)["model"], 0
    for name, unit in saved.all_units.items():
        mask, held = state[f"{name}.gate.mask"].bool(), state[f"{name}.gate.held"]
        assert torch.equal(unit.weight[~mask], held[~mask])
        assert torch.equal(unit.weight[mask], state[f"{name}.layer.weight"][mask])
        zeros += int((unit.weight == 0).sum())
    inputs = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(saved(inputs), network.eval()(inputs))
    summary = json.loads(Path("held/summary.json").read_text())
    assert 0 < zeros == sum(layer["of"] - layer["left"] for layer in summary["weights"].values())
    assert summary["form"]["before"] == pytest.approx(summary["test"]["top1"])
    assert [Path(export["file"]).name for export in summary["exports"]] == ["network.pt2"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([*control("kind='run', pruned='initial'"), "--compact"], "--compact takes out whole filters"),
        ([*control("kind='shuffle', pruned='grown'")], "not with kind='shuffle': choose kind='run'"),
        ([*control("pruned='initial'"), "--reg", "group_lasso"], "--reg group_lasso sets filters to 0"),
        ([*control("kind='run', pruned='grown'")], "'rounds' does not say which weights grew"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_any_work(ticket, monkeypatch, flags, message):
    state = torch.load("rounds/checkpoint.pt", weights_only=True)
    del state["tickets"]["shrunk"]  # as older runs are
    torch.save(state, "rounds/checkpoint.pt")
    monkeypatch.setattr(modeling.experiment.tasks, "load", lambda *_, **__: pytest.fail("the data was loaded"))
    with pytest.raises(Refused, match=message) as caught:
        run_program(*FLAGS, *flags, "--out_dir", "run")
    assert "\n" not in str(caught.value)
    assert not Path("run").exists()


def test_a_checkpoint_that_lacks_what_grew_is_refused(ticket):
    run_program(*FLAGS, *control("kind='run', pruned='grown'"), "--out_dir", "held")
    state = torch.load("held/checkpoint.pt", weights_only=True)
    state["tickets"]["shrunk"].pop()
    torch.save(state, "held/checkpoint.pt")
    with pytest.raises(Refused, match=r"tickets\.shrunk are 1, not 2"):
        run_program("--resume", "held", "--recalibrate", "1")
