"""A network that is cut and repaired layer by layer: its plan, its stops, and that it goes on to the same bits."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import TINY_DATA, TwoBlocks, run_program
from promises import PRUNED, STEPS, differences, records

import models
from pruning.repair import Repair
from runs.folder import Folder
from settings.arguments import parse
from settings.errors import Stopped
from training import actions
from training.stages import plan_of

LASSO = ["--reconstruct", "lasso(rows=300, images=30)"]
LAYERS = ["stem", "a1", "a2", "b1", "b2"]


@pytest.fixture
def dense(tmp_path, monkeypatch):
    """The folder of a trained small network, which all names of networks mean in this test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "build", lambda _, classes=10, **__: TwoBlocks(classes=classes))
    run_program(*STEPS, "--epochs", "1", "--out_dir", "dense")
    return "dense"


def stages(*flags):
    return [(stage.name, stage.epochs, stage.enter) for stage in plan_of(parse([*PRUNED, *LASSO, *flags])).stages]


def test_the_plan(dense):
    cut = ["--prune_phase", "after", "--epochs", "8"]
    assert stages(*cut) == [("training", 6, ()), ("after the cut", 2, ("reconstruct",))]
    trained = ["--init", dense, "--epochs", "8", "--prune_phase"]
    for phase in ("after", "init"):
        assert stages(*trained, phase) == [("after the cut", 8, ("reconstruct",))]
    layers = [(f"layer {name}", 2, (f"reconstruct(layer='{name}', trained=True)",)) for name in LAYERS]
    by_layer = ["--procedure", "layerwise(epochs=2)"]
    assert stages(*trained, "init", *by_layer) == [*layers, ("after the cut", 8, ())]
    assert stages(*cut, *by_layer) == [("training", 6, ()), *layers, ("after the cut", 2, ())]


def test_the_learning_rate_goes_on_behind_the_cut():
    first, last = plan_of(parse([*PRUNED, *LASSO, "--prune_phase", "after", "--epochs", "8", "--warmup_epochs", "1"])).stages
    assert (first.progress, first.warmup_epochs, last.progress, last.warmup_epochs) == ((0, 0.75), 1, (0.75, 1), 0)


@pytest.mark.parametrize("epochs", [0, 1])
def test_stopped_anywhere_it_goes_on_to_the_same_bits(dense, monkeypatch, epochs):
    save, copies = Folder.save, []

    def save_and_copy(folder, state):
        save(folder, state)
        if folder.path.name == "whole":
            copies.append((folder.path.with_name(f"copy{len(copies)}"), state["stage"]))
            shutil.copytree(folder.path, copies[-1][0])

    monkeypatch.setattr(Folder, "save", save_and_copy)
    flags = [*PRUNED, *LASSO, "--prune_phase", "init", "--init", dense, "--procedure", f"layerwise(epochs={epochs})"]
    run_program(*STEPS, *flags, "--lr", "0.01", "--out_dir", "whole")
    whole, summary = records("whole"), json.loads(Path("whole/summary.json").read_text())
    # each stage is kept in a checkpoint, with epochs or without
    assert {stage for _, stage in copies} == set(range(6))
    assert [record["layer"] for record in summary["reconstruction"]] == LAYERS
    assert whole["to_repair"] == {}
    shutil.rmtree("dense")  # the checkpoint holds all
    for copy, _ in copies[:-1]:
        shutil.copy("whole/config.json", copy)  # which is written behind the first checkpoint
        run_program("--resume", str(copy), "--quiet")
        assert differences(whole, records(copy)) == []
    assert len(whole["rows"]) == 2 + 5 * epochs


@pytest.mark.parametrize("epochs", [0, 1])
def test_what_is_wanted_behind_training_is_the_trained_network(dense, monkeypatch, epochs):
    """Of the second layer: the weights and masks that the network has by then or, without training, those before the cut."""
    seen = []

    class Seeing(Repair):
        def __init__(self, network, original, *rest, **options):
            super().__init__(network, original, *rest, **options)
            masks = {name: None if unit.gate is None else unit.live.clone() for name, unit in original.units.items()}
            same = torch.equal(original.b2.weight, network.b2.weight)
            seen.append((same, masks, original.b2.weight.detach().clone()))

    monkeypatch.setattr(actions, "Repair", Seeing)
    flags = [*PRUNED, "--prune_scope", "local", *LASSO, "--prune_phase", "init", "--init", dense, "--lr", "0.01"]
    run_program(*STEPS, *flags, "--procedure", f"layerwise(epochs={epochs})", "--out_dir", "run")
    before = torch.load(Path(dense, "checkpoint.pt"), weights_only=True)["model"]["b2.layer.weight"]
    assert len(seen) == 5
    for number, (same, masks, weight) in enumerate(seen):
        assert same == (epochs == 1 or number < 4)  # b2 is read by nothing but the last layer, b2 itself reads b1
        if epochs:
            assert torch.equal(weight, before) == (number == 0)
            assert [name for name, mask in masks.items() if not mask.all()] == (["stem", "a1", "a2", "b1", "b2"][:number])
        else:
            assert torch.equal(weight, before)
            assert {*masks.values()} == {None}


def test_layers_are_cut_one_after_the_other(dense):
    flags = [*PRUNED, "--prune_scope", "local", *LASSO, "--prune_phase", "init", "--init", dense]
    run_program(*STEPS, *flags, "--procedure", "layerwise", "--out_dir", "run")
    cut = [json.loads(line)["cut"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert cut == [1, 2, 3, 4, 5, 5, 5]  # floor(0.3 x 5 or 6) = 1 of each


def test_a_signal_is_heard_between_layers(dense, monkeypatch):
    flags = [*PRUNED, *LASSO, "--prune_phase", "init", "--init", dense]
    carry_out, done = Repair.carry_out, []

    def interrupted(repair, layer):
        done.append(layer.name)
        if len(done) == 2:
            signal.raise_signal(signal.SIGTERM)
        return carry_out(repair, layer)

    monkeypatch.setattr(Repair, "carry_out", interrupted)
    with pytest.raises(Stopped, match=r"SIGTERM before the stage [\w ]+$"):
        run_program(*STEPS, *flags, "--out_dir", "run")
    assert done == LAYERS[:2]
    assert not Path("run").exists()
    done.clear()
    with pytest.raises(Stopped, match=r"SIGTERM before the stage [\w ]+: go on with --resume run"):
        run_program(*STEPS, *flags, "--procedure", "layerwise(epochs=0)", "--out_dir", "run")


def test_what_is_said_of_each_layer(dense, capsys):
    flags = [*TINY_DATA, "--epochs", "1", "--batch_size", "27", "--init", dense, *PRUNED, "--prune_phase", "init"]
    run_program(*flags, "--prune_imp", "Taylor2019", "--reconstruct", "least_squares(rows=300, images=30)", "--compact")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("layer")]
    assert [line.split(":")[0] for line in lines] == [f"layer {name}" for name in LAYERS]
    for line in lines:
        assert " filters kept; error of " in line
        assert " as cut, " in line
        assert " repaired (" in line


def test_the_repaired_network_begins_nearer_to_the_trained_one(dense):
    """The first row's loss, of the same weights cut by the same criterion, at a learning rate that moves nothing."""
    losses = {}
    for method in ("none", "least_squares(rows=2000, images=54)"):
        flags = [*STEPS, "--epochs", "1", "--lr", "1e-9", "--prune_phase", "init", "--init", dense, *PRUNED]
        run_program(*flags, "--reconstruct", method, "--out_dir", method[:4])
        losses[method[:4]] = json.loads(Path(method[:4], "metrics.jsonl").read_text())["valid"]["loss"]
    run_program(*STEPS, "--epochs", "1", "--lr", "1e-9", "--init", dense, "--out_dir", "same")
    wanted = json.loads(Path("same/metrics.jsonl").read_text())["valid"]["loss"]
    assert abs(losses["leas"] - wanted) < abs(losses["none"] - wanted)
