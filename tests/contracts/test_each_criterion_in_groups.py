"""Each criterion scores the groups of a small ResNeXt, which leave it exactly, or is refused by name in one line."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY_DATA, run_program
from torch import nn

import models
import sensitivity
from models import Network
from pruning import Learner, Pruner, accounting
from pruning.groups import Decisions
from pruning.layer_order import layers_of
from pruning.removal import Removal
from settings.errors import Refused
from settings.registry import CRITERIA, GATES, RECONSTRUCTIONS, SCOPES

pytestmark = pytest.mark.core

SMALL = "resnext11(groups=4, width=2)"
REFUSED = [name for name, entry in CRITERIA.entries.items() if "unlike filters" in entry.traits]
SHORTER = {"LcP": "LcP(evaluations=8)"}  # a search that is long by default
COUNTING = ["PFA(counts='KL')", "APoZ(counts='deviation')", "zero_fraction(counts='multilayer', threshold=0.1)"]


def small(seed: int = 0) -> Network:
    """A ResNeXt in float64, with batch norm away from its defaults, whose second block has groups of different lengths."""
    torch.manual_seed(seed)
    network = models.build(SMALL, classes=4).double().eval()
    for unit in network.all_units.values():
        unit.layer.weight.data *= torch.rand(unit.filters, *[1] * (unit.weight.dim() - 1), dtype=torch.float64) + 0.1
        if unit.norm is not None:
            nn.init.uniform_(unit.norm.weight, 0.1, 1.5)
            for tensor in (unit.norm.bias, unit.norm.running_mean):
                nn.init.uniform_(tensor, -0.5, 0.5)
            nn.init.uniform_(unit.norm.running_var, 0.5, 1.5)
    return network


def images(count: int = 160) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64), torch.arange(count) % 4


def pruned(network: Network, count: int = 160, **options) -> Pruner:
    x, labels = images(count)
    pruner = Pruner(network, **{"rate": 0.5, "image_size": 8, **options})
    pruner.begin(
        epochs=4, steps=2, sample=lambda: iter([(x[: count // 2], labels[: count // 2]), (x[count // 2 :], labels[count // 2 :])])
    )
    pruner.update(pruner.rate)
    return pruner


@torch.no_grad()
def assert_whole_groups_leave(network: Network) -> Network:
    """Whole groups are cut, the smaller network has the same outputs, and what it holds was counted beforehand."""
    for stage in ("stage1", "stage2", "stage3"):
        block = network.get_submodule(stage)[0]
        masks = [unit.gate.decide().view(4, -1) for unit in (block.conv1, block.conv2)]
        assert all((mask.any(1) == mask.all(1)).all() for mask in masks)
        assert torch.equal(*(mask.any(1) for mask in masks))
    smaller, x = Removal(network.eval()).compact().eval(), images(8)[0]
    torch.testing.assert_close(smaller(x), network(x), rtol=0, atol=1e-10)
    assert accounting.remaining(network, 8) == accounting.dense(smaller, 8) == accounting.remaining(smaller, 8)
    return smaller


@pytest.mark.parametrize("name", [name for name in CRITERIA.entries if name not in REFUSED])
def test_whole_groups_leave_exactly(name):
    network = small()
    images_seen = 600 if "more images than filters" in CRITERIA.entries[name].traits else 160
    pruned(network, images_seen, criterion=SHORTER.get(name, name), scope="local")
    smaller = assert_whole_groups_leave(network)
    assert [smaller.get_submodule(f"stage{n}")[0].conv2.groups for n in (1, 2, 3)] == [2, 2, 2]


@pytest.mark.parametrize("criterion", COUNTING)
def test_where_a_criterion_counts_filters_a_group_goes_as_a_whole(criterion):
    network = small()
    if criterion.startswith("zero"):
        for unit in (network.stage1[0].conv1, network.stage1[0].conv2):
            unit.layer.weight.data[2:4] *= 1e-3
        network.stage1[0].conv3.layer.weight.data[:, 2:4] *= 1e-3
    pruned(network, 600, criterion=criterion)
    assert_whole_groups_leave(network)
    if criterion.startswith("zero"):
        assert network.stage1[0].conv2.gate.decide().tolist() == [True, True, False, False, *[True] * 4]


def test_a_group_has_the_mean_of_its_filters_each_layers_first_divided_by_its_mean():
    network = small()
    decisions = Decisions(network, list(network.units), "free")
    scores = {name: torch.ones(unit.filters) for name, unit in network.units.items()}
    scores["stage1.0.conv1"] = torch.tensor([0.0, 2, 1, 1, 3, 3, 0, 0])
    scores["stage1.0.conv2"] = torch.tensor([4.0, 4, 0, 0, 0, 0, 6, 2])
    merged = decisions.merge(scores)
    assert decisions.layers["stage1.0.conv1"] == ["stage1.0.conv1", "stage1.0.conv2"]
    # means 1, 1, 3, 0 by their own mean 1.25, and 4, 0, 0, 4 by theirs, 2; then times the mean of both, 1.625
    wanted = [1.625 * (a / 1.25 + b / 2) / 2 for a, b in ((1, 4), (1, 0), (3, 0), (0, 4))]
    assert merged["stage1.0.conv1"].tolist() == pytest.approx(wanted)
    assert len(merged["stage1.0.conv3"]) == 64
    # 4 groups in each of 3 blocks, the filters of the stem, and for each block those of conv3 and of the projection
    assert len(decisions) == 3 * 4 + 16 + 2 * (64 + 128 + 256)


@pytest.mark.parametrize("name", REFUSED)
def test_what_compares_filters_is_refused_by_name(name):
    network = small()
    with pytest.raises(ValueError, match=f"^{name} compares filters that read the same channels, .* in 4 groups$"):
        Pruner(network, rate=0.5, criterion=name)
    assert all(unit.gate is None for unit in network.units.values())


@pytest.mark.parametrize("residual", ["free", "grouped"])
@pytest.mark.parametrize("budget", ["macs", "parameters"])
def test_budgets_are_met_by_whole_groups(residual, budget):
    network = small()
    pruned(network, budget=budget, residual=residual, rate=0.4)
    smaller = assert_whole_groups_leave(network)
    left = getattr(accounting.dense(smaller, 8), budget) / getattr(accounting.dense(network, 8), budget)
    assert 0.5 < left <= 0.6


@pytest.mark.parametrize(
    "scope", [name for name, entry in SCOPES.entries.items() if not {"filters only", "single weights"} & entry.traits.keys()]
)
@pytest.mark.parametrize("gate", ["output", "soft"])
def test_every_scope_and_mask(scope, gate):
    network = small()
    pruned(network, scope=scope, gate=gate)
    assert_whole_groups_leave(network)


def test_published_counts_are_of_groups(tmp_path):
    (tmp_path / "counts").write_text(json.dumps({"kept": {"stage1.0.conv1": 3, "stem": 7}}))
    network = small()
    pruned(network, scope=f"preset(name='{tmp_path / 'counts'}')")
    smaller = assert_whole_groups_leave(network)
    assert (smaller.stage1[0].conv1.filters, smaller.stage1[0].conv2.groups, smaller.stem.filters) == (6, 3, 7)


def test_a_multiple_is_of_filters():
    network = small()
    pruned(network, round_to=4, rate=0.6, scope="local")
    assert [int(network.get_submodule(f"stage{n}")[0].conv2.live.sum()) for n in (1, 2, 3)] == [4, 8, 16]
    assert {int(unit.live.sum()) % 4 for unit in network.units.values()} == {0}


def test_rounds_take_nothing_back():
    network, x = small(), images()
    pruner = Pruner(network, rate=0.6, phase="iterative(rounds=3)", schedule="linear")
    pruner.begin(epochs=3, steps=2, sample=lambda: iter([x]))
    before = None
    for epoch in range(3):
        pruner.before_step(epoch, 0)
        now = {name: gate.decide() for name, gate in pruner.gates.items()}
        assert before is None or all((now[name] <= mask).all() for name, mask in before.items())
        before = now
        for unit in network.units.values():
            unit.layer.weight.data *= torch.rand(unit.filters, 1, 1, 1, dtype=torch.float64)
    assert_whole_groups_leave(network)


def test_what_is_in_groups_is_cut_with_the_layer_that_reads_it():
    layer = next(layer for layer in layers_of(small()) if "stage1.0.conv3" in layer.readers)
    together = ("stage1.0.conv1", "stage1.0.conv2", "stage1.0.projection")  # the last writes the stream that conv3 adds to
    assert (layer.chosen, layer.fixed, layer.readers) == ((), together, ("stage1.0.conv3",))


@pytest.mark.parametrize("gate", [name for name, entry in GATES.entries.items() if "of: structured" in str(entry.traits)])
def test_a_gate_for_each_filter_is_refused(gate):
    with pytest.raises(ValueError, match="only whole ones leave, and each filter would have another gate"):
        Learner(small(), prune_type="structured", gate=gate)


OF_READERS = [name for name, entry in RECONSTRUCTIONS.entries.items() if "rows" in entry.options]


@pytest.mark.parametrize("flags", [
    ["--target_macs", "0.5"],
    *(["--prune_phase", "after", "--prune_until", "0.5", "--reconstruct", f"{name}(rows=600, images=54)"] for name in OF_READERS),
])  # fmt: skip
def test_a_run_takes_them_out(tmp_path, monkeypatch, capsys, flags):
    monkeypatch.chdir(tmp_path)
    tiny = [*TINY_DATA, "--epochs", "2", "--batch_size", "18", "--arch", SMALL, "--prune_type", "structured", "--compact"]
    run_program(*tiny, *flags, "--lr", "0.01", "--out_dir", "run")
    shown = capsys.readouterr()
    assert "result removal: the same outputs" in shown.out
    assert (
        f"amounts are of {3 * 4 + 16 + 2 * 448} decisions, each about one or more of {2 * 56 + 16 + 2 * 448} filters" in shown.err
    )
    network = models.load("run/model.pt")
    assert sum(filters for filters, *_ in network.shapes()["units"].values()) < 2 * 56 + 16 + 2 * 448 + 3


def test_a_scan_cuts_groups_and_says_what_they_cost(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_program(*TINY_DATA, "--epochs", "1", "--batch_size", "18", "--arch", SMALL, "--lr", "0.01", "--out_dir", "run")
    sensitivity.main(["run", "--rates", "0.5", "--out", "scan.json"])
    layers = json.loads(Path("scan.json").read_text())["layers"]
    assert [name for name in layers if "conv1" in name or "conv2" in name] == [f"stage{n}.0.conv1" for n in (1, 2, 3)]
    asked = ["--prune_type", "structured", "--prune_scope", "sensitivity(file='scan.json')", "--prune_phase", "init"]
    run_program("--init", "run", "--epochs", "1", "--batch_size", "18", *asked, "--compact", "--out_dir", "pruned")
    assert "result removal: the same outputs" in capsys.readouterr().out


def test_a_run_is_refused_before_its_data_is_read():
    with pytest.raises(Refused, match=r"^--prune_imp FPGM: FPGM compares filters"):
        run_program(*TINY_DATA, "--arch", SMALL, "--prune_type", "structured", "--prune_imp", "FPGM")
