"""These tests hold the densities that a run tells where smaller pieces than filters are cut against counts by hand."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, run_program

import report
from pruning import Pruner, accounting


@pytest.mark.core
def test_fifty_steps_leave_pruned_weights_at_exactly_zero(two_blocks, batch):
    """With momentum and weight decay, and with momentum from before the cut: the mask is explicit, no weight is looked at."""
    images, labels = batch
    optimizer = torch.optim.SGD(two_blocks.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    pruner = Pruner(two_blocks, prune_type="unstructured", phase="init", rate=0.8)

    def step():
        optimizer.zero_grad()
        F.cross_entropy(two_blocks(images), labels).backward()
        optimizer.step()

    step()
    pruner.update(0.8)
    masks = {name: gate.decide() for name, gate in pruner.gates.items()}
    began = {name: unit.weight.detach().clone() for name, unit in pruner.units.items()}
    for _ in range(50):
        step()
    for name, unit in pruner.units.items():
        in_force = unit.weight_in_force
        assert (in_force[~masks[name]] == 0).all()
        assert torch.equal(in_force[masks[name]], unit.weight[masks[name]])
        assert not torch.equal(unit.weight, began[name])
        assert (unit.weight.grad[~masks[name]] == 0).all()
        assert torch.equal(pruner.gates[name].decide(), masks[name])


@pytest.mark.core
@pytest.mark.parametrize("kind", ["unstructured", "kernels"])
def test_connections_are_those_of_the_masks(two_blocks, kind):
    pruner = Pruner(two_blocks, prune_type=kind, rate=0.6)
    pruner.update(0.6)
    for name, counts in accounting.connections(pruner.units).items():
        unit = two_blocks.get_submodule(name)
        assert counts == {"left": int((unit.weight_in_force != 0).sum()), "of": unit.weight.numel()}
    assert ("classifier" in accounting.connections(pruner.units)) == (kind == "unstructured")


@pytest.mark.parametrize("kind", ["unstructured", "kernels"])
def test_a_run_tells_all_densities(tmp_path, monkeypatch, capsys, kind):
    """Of the weights that could be cut, of all parameters, and MACs by the density of each layer, beside the dense ones."""
    monkeypatch.chdir(tmp_path)
    run_program(*TINY, "--prune_type", kind, "--prune_rate", "0.7", "--quiet", "--out_dir", "run")
    out = capsys.readouterr().out
    tensors = torch.load("run/checkpoint.pt", weights_only=True)["model"]
    masks = {name.removesuffix(".gate.mask"): value for name, value in tensors.items() if name.endswith(".gate.mask")}
    weights = {name.removesuffix(".layer.weight"): value for name, value in tensors.items() if name.endswith(".layer.weight")}
    density = {name: mask.mean(dtype=torch.float64).item() for name, mask in masks.items()}
    sizes = {name: weights[name].numel() for name in masks}
    left = {name: round(size * density[name]) for name, size in sizes.items()}
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["weights"] == {name: {"left": left[name], "of": size} for name, size in sizes.items()}
    # ResNet-20 on 16 pixels: 16, 8 and 4 a side, with one output pixel of the classifier
    pixels = {name: 1 if name == "classifier" else {"1": 256, "2": 64, "3": 16}.get(name[5:6], 256) for name in weights}
    dense_macs = {name: weight.numel() * pixels[name] for name, weight in weights.items()}
    macs = sum(count * density.get(name, 1) for name, count in dense_macs.items())
    assert summary["dense"]["macs"] == sum(dense_macs.values())
    assert summary["left"]["macs"] == pytest.approx(macs, abs=0.5)
    cut = sum(sizes.values()) - sum(left.values())
    assert summary["left"]["parameters"] == 272_019 - cut
    kept, of = sum(left.values()), sum(sizes.values())
    assert f"result prunable weights: {kept} of {of} ({100 * kept / of:.2f} %) not zero\n" in out
    share = 100 * (272_019 - cut) / 272_019
    assert f"result parameters: {272_019 - cut} of 272019 ({share:.2f} %) not zero, with biases and batch norm\n" in out
    fewer = sum(dense_macs.values()) / round(macs)
    assert f"not zero, {fewer:.2f} times fewer if a product with 0 costs nothing\n" in out
    assert report.main(["run", "--no_plots", "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["weights left %"] == [100 * kept / of]
    assert row["parameters left %"] == [pytest.approx(share)]
    run_program("--resume", "run", "--quiet")  # a run that has ended tells them again
    assert "result prunable weights" in capsys.readouterr().out


def test_where_whole_filters_go_there_is_no_such_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_program(*TINY, "--prune_type", "structured", "--quiet", "--out_dir", "run")
    assert "prunable weights" not in capsys.readouterr().out
    assert json.loads(Path("run/summary.json").read_text())["weights"] == {}
