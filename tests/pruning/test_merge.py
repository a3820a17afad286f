"""Neurons and filters that are merged: the worked example, brute force, and duplicates that leave without a loss."""

import inspect
import json
import re
from pathlib import Path

import pytest
import torch
from conftest import TwoBlocks, narrow, run_program
from promises import PRUNED, STEPS, differences, records, trains_and_resumes
from test_reconstruction import repair_of
from torch import nn
from toys import outputs_of, toy

import models
from models import Network, Unit
from pruning.accounting import filter_masks
from pruning.gates.scale import put_scales
from pruning.layer_order import Layer
from pruning.merging import costs, merged
from pruning.removal import Removal
from pruning.repair import layers_for
from settings.registry import REGULARIZERS

pytestmark = pytest.mark.core
ROWS = torch.tensor([[1, 2, 0.5], [1, 2, 0.5], [0, 1, 0]], dtype=torch.float64)  # the bias is the last weight
READ = torch.tensor([[3, 1], [4, 0], [5, 2]], dtype=torch.float64)


def test_the_costs_as_worked_out_by_hand():
    assert costs(ROWS, READ).tolist() == [[0, 0, 32.625], [0, 0, 32.625], [11.25, 18, 0]]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-9)])
def test_the_first_merge_as_worked_out_by_hand(dtype, tolerance):
    keep, read = merged(ROWS, READ, 2)
    assert keep.tolist() == [True, False, True]
    assert read.tolist() == [[7, 1], [0, 0], [5, 2]]
    x = torch.randn(100, 2, dtype=dtype)
    before, after = (torch.relu(x @ ROWS[:, :2].T.to(dtype) + ROWS[:, 2].to(dtype)) @ read.to(dtype) for read in (READ, read))
    assert torch.allclose(before, after, rtol=0, atol=tolerance * float(before.abs().max()))


def test_costs_follow_what_was_merged():
    """Behind the first merge a_0 = (7, 1): to remove 0 then costs 2.25 x 25 instead of 2.25 x 5, and 2 goes instead of it."""
    keep, read = merged(ROWS, READ, 1)
    assert 2.25 * (7**2 + 1) / 2 > 2.25 * (5**2 + 2**2) / 2
    assert keep.tolist() == [True, False, False]
    assert read.tolist() == [[12, 3], [0, 0], [0, 0]]


@pytest.mark.parametrize("count", range(1, 7))
def test_as_by_brute_force(count):
    generator = torch.Generator().manual_seed(count)
    incoming, outgoing = (torch.randn(7, n, generator=generator, dtype=torch.float64) for n in (4, 5))
    rows, reads = dict(enumerate(incoming.tolist())), dict(enumerate(outgoing.tolist()))
    while len(rows) > count:
        _, into, gone = min(
            (
                sum(a * a for a in reads[j]) / 5 * sum((one - other) ** 2 for one, other in zip(rows[i], rows[j], strict=True)),
                i,
                j,
            )
            for i in rows
            for j in rows
            if i != j
        )
        reads[into] = [a + b for a, b in zip(reads[into], reads.pop(gone), strict=True)]
        del rows[gone]
    keep, read = merged(incoming, outgoing, count)
    assert keep.nonzero().flatten().tolist() == sorted(rows)
    assert torch.allclose(read[keep], torch.tensor([reads[i] for i in sorted(reads)], dtype=torch.float64))
    assert not read[~keep].any()


def scrambled(network: Network) -> Network:
    """The network in float64, its batch norm and biases away from their defaults."""
    network.double()
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        if name.endswith((".bias", ".running_mean")):
            nn.init.uniform_(value, -0.5, 0.5)
        elif name.endswith(("norm.weight", ".running_var")):
            nn.init.uniform_(value, 0.5, 1.5)
    return network.eval()


def doubled(unit: Unit) -> None:
    """Make the filters behind the first half equal to those of it: the same but for a factor that batch norm takes back."""
    half, norm = unit.filters // 2, unit.norm
    first, second = slice(0, half), slice(half, 2 * half)
    factor = 1 if norm is None else 2
    with torch.no_grad():
        unit.weight[second] = factor * unit.weight[first]
        if unit.layer.bias is not None:
            unit.layer.bias[second] = factor * unit.layer.bias[first]
        if norm is not None:
            norm.weight[second], norm.bias[second] = norm.weight[first], norm.bias[first]
            norm.running_mean[second] = factor * norm.running_mean[first]
            norm.running_var[second] = factor**2 * (norm.running_var[first] + norm.eps) - norm.eps


SIZES = {"lenet300": 28, "lenet5": 28, "vgg16": 32, "resnet20": 16}  # of the images, and of the toys' 11
FACTORS = {"lenet300": 5, "lenet5": 5, "vgg16": 32, "resnet20": 4}


def network_named(name: str) -> Network:
    """A published network with fewer filters, or a toy, of which neurons of hidden linear layers may be cut too."""
    network = narrow(models.build(name, size=28), FACTORS[name]) if name in SIZES else toy(name)
    network.linear_too = True
    return scrambled(network)


@pytest.mark.parametrize("name", [*SIZES, "depthwise", "inverted", "dilated", "two outputs"])
def test_what_is_there_twice_leaves_without_a_loss(name):
    network, size = network_named(name), SIZES.get(name, 11)
    chosen = [unit for layer in layers_for(network, "merge") for unit in layer.chosen]
    for unit in chosen:
        doubled(network.get_submodule(unit))
    keep = {unit: torch.randperm(n) < n - n // 2 for unit in chosen if (n := network.get_submodule(unit).filters)}
    repair, images = repair_of(network, keep, method="merge", batch=5, size=size)
    repair.sample = None  # no images are seen
    with torch.no_grad():
        whole = outputs_of(repair.original(images))
        told = [repair.carry_out(layer) for layer in repair.layers]
        merged_, smaller = (outputs_of(net(images)) for net in (network, Removal(network).compact().eval()))
    for one, two, three in zip(whole, merged_, smaller, strict=True):
        assert torch.allclose(one, two, rtol=0, atol=1e-9 * float(one.abs().max()))
        assert torch.allclose(one, three, rtol=0, atol=1e-9 * float(one.abs().max()))
    for unit in chosen:
        filters = network.get_submodule(unit).filters
        assert filter_masks(network)[unit].tolist() == [not filters // 2 <= n < 2 * (filters // 2) for n in range(filters)]
    assert [record["layer"] for record in told] == [layer.name for layer in repair.layers]


def test_a_cut_alone_does_lose_what_a_merge_does_not():
    outputs = {}
    for how in ("cut", "merged"):
        network = network_named("lenet300")
        unit = network.get_submodule("linear.1")
        doubled(unit)
        keep = {"linear.1": torch.arange(unit.filters) < unit.filters // 2}
        repair, images = repair_of(network, keep, method="merge", batch=5, size=28)
        (layer,) = [layer for layer in repair.layers if layer.name == "linear.1"]
        with torch.no_grad():
            whole = repair.original(images)
            unit.gate.set(keep["linear.1"])
            if how == "merged":
                repair.carry_out(layer)
            outputs[how] = float((network(images) - whole).abs().max())
    assert outputs["merged"] < 1e-9 < 1e-3 < outputs["cut"]


def test_streams_stay_whole():
    network = TwoBlocks()
    assert layers_for(network, "merge") == [Layer(("a1",), (), ("a2",)), Layer(("b1",), (), ("b2",))]
    network = models.build("vgg16")
    assert [layer.name for layer in layers_for(network, "merge")] == [*network.units]
    network.linear_too = True
    assert layers_for(network, "merge")[-1] == Layer(("hidden",), (), ("classifier",))


@pytest.mark.parametrize("arch", ["lenet300", "lenet5"])
def test_neurons_of_hidden_linear_layers_go(tmp_path, monkeypatch, arch):
    monkeypatch.chdir(tmp_path)
    build = models.build
    monkeypatch.setattr(models, "build", lambda name, **options: narrow(build(name, **options)))
    flags = [*STEPS, "--epochs", "1"]
    run_program(*flags, "--arch", arch, "--out_dir", "dense")
    cut = [*PRUNED, "--prune_phase", "init", "--reconstruct", "merge", "--init", "dense", "--lr", "1e-3", "--compact"]
    run_program(*flags, *cut, "--out_dir", "cut")
    told = records("cut")["results"]["reconstruction"]
    units = {name: unit.filters for name, unit in models.load(Path("cut/model.pt")).all_units.items()}
    assert {record["layer"]: record["kept"] for record in told} == {name: units[name] for name in list(units)[:-1]}
    assert "linear.0" in units
    assert sum(record["of"] - record["kept"] for record in told) == int(0.3 * sum(record["of"] for record in told) + 1e-9)


def test_what_writes_a_stream_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "build", lambda _, classes=10, **__: TwoBlocks(classes=classes))
    loud = [flag for flag in STEPS if flag != "--quiet"]
    layerwise = ["--prune_phase", "after", "--prune_until", "0.5", "--procedure", "layerwise(epochs=0)"]
    run_program(*loud, *PRUNED, *layerwise, "--reconstruct", "merge", "--out_dir", "run")
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("merge ", "layer "))]
    assert told[0] == "merge leaves whole what writes residual streams: stem, a2, b2"
    assert [re.sub(r"\d", "n", line) for line in told[1:]] == [
        f"layer {name}: n of n filters kept, by the weights alone" for name in ("an", "bn")
    ]
    assert json.loads(Path("run/summary.json").read_text())["left"]["filters"] == 28 - int(0.3 * 10)


def test_without_its_neurons_a_network_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    build = models.build
    monkeypatch.setattr(models, "build", lambda name, **options: narrow(build(name, **options), 8))
    cut = ["--prune_phase", "after", "--prune_until", "0.5", "--reconstruct", "merge", "--compact", "--finetune_epochs", "1"]
    for at in (1, 2):  # before the epoch behind the cut, and before that behind removal
        folder = tmp_path / str(at)
        folder.mkdir()
        trained = trains_and_resumes(folder, monkeypatch, "--arch", "lenet5", *PRUNED, *cut, network=None, at=at)
        assert [row["stage"] for row in trained["rows"]] == ["training", "after the cut", "fine-tuning"]
        assert "linear.0" in trained["rows"][-1]["kept_filters"]


@pytest.mark.parametrize("name", REGULARIZERS.entries)
def test_penalties_stay_about_convolutions(name):
    results = []
    for linear_too in (False, True):
        torch.manual_seed(0)
        network, penalty = scrambled(narrow(models.build("vgg16"), 32)), REGULARIZERS.get(name)
        network.linear_too = linear_too
        if "learned scales" in REGULARIZERS.entry(name).traits:
            put_scales(network, "filter")
        steps = "step" in inspect.signature(penalty).parameters
        results.append([penalty(network, 0.1) if steps else penalty(network), *network.state_dict().values()])
    assert differences(*results) == []
