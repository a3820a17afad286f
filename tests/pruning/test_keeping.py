"""What --keep names is never cut: for each granularity, scope and criterion, with budgets, groups, repairs and procedures."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from conftest import TINY, TINY_DATA, run_program
from promises import PRUNED, trains_and_resumes
from toys import Separable

import models
from pruning import Learner, Pruner
from pruning.keeping import left_whole
from pruning.removal import Removal
from runs.checkpoints import load_checkpoint
from settings.errors import Refused
from settings.registry import CRITERIA, GRANULARITIES, SCOPES

pytestmark = pytest.mark.core

LEGAL = [
    (granularity, criterion)
    for granularity, criterion in itertools.product(GRANULARITIES.entries, CRITERIA.entries)
    if granularity == "structured" or "filters only" not in CRITERIA.entries[criterion].traits
]
SHORTER = {"LcP": "LcP(evaluations=8)"}  # a search that is long by default
REPAIRED = ["--prune_phase", "after", "--prune_until", "0.5", "--reconstruct", "least_squares(rows=1200)"]
WHOLE = frozenset({"stem", "b1"})


def files(folder: Path) -> dict[str, str]:
    """Scopes that need a file, as they are typed; the files say something of the layers that are kept too."""
    (folder / "counts").write_text(json.dumps({"kept": {"stem": 3, "a1": 3, "a2": 3, "b1": 2, "b2": 3}}))
    scan = {"rates": [0.5], "layers": {name: [10.0] for name in ("stem", "a1", "a2", "b1", "b2")}}
    (folder / "scan").write_text(json.dumps(scan))
    return {"preset": f"preset(name='{folder / 'counts'}')", "sensitivity": f"sensitivity(file='{folder / 'scan'}')"}


def cut(pruner) -> dict[str, int]:
    return {name: int((~gate.decide()).sum()) for name, gate in pruner.gates.items()}


@pytest.mark.parametrize(("granularity", "criterion"), LEGAL)
@pytest.mark.parametrize("scope", SCOPES.entries)
def test_it_is_whole_whatever_is_cut_and_rates_are_of_the_rest(two_blocks, batch, tmp_path, granularity, criterion, scope):
    traits = SCOPES.entries[scope].traits
    if ("filters only" in traits and granularity != "structured") or (
        "single weights" in traits and granularity != "unstructured"
    ):
        return
    named = files(tmp_path).get(scope, scope)
    pruner = Pruner(
        two_blocks, prune_type=granularity, criterion=SHORTER.get(criterion, criterion), scope=named, rate=0.5, whole=WHOLE
    )
    pruner.begin(epochs=8, steps=2, sample=lambda: iter([batch]))
    pruner.before_step(0, 0)
    assert not pruner.gates.keys() & WHOLE
    assert all(two_blocks.get_submodule(name).gate is None for name in WHOLE)
    sizes = [gate.mask.numel() for gate in pruner.gates.values()]
    wanted = sum(int(0.5 * size) for size in sizes) if scope == "local" else int(0.5 * sum(sizes))
    wanted = 2 + 3 + 3 if scope == "preset" else wanted  # of 5, 6 and 6 filters the counts keep three each
    assert sum(cut(pruner).values()) == wanted


@pytest.mark.parametrize("criterion", ["PFA(counts='KL')", "PFA(counts='energy')", "zero_fraction(threshold=0.2)"])
def test_criteria_that_find_their_counts_leave_it_whole(two_blocks, batch, criterion):
    pruner = Pruner(two_blocks, criterion=criterion, rate=0.5, whole=WHOLE)
    pruner.begin(epochs=8, steps=2, sample=lambda: iter([batch]))
    pruner.update(0.5)
    assert not cut(pruner).keys() & WHOLE


@pytest.mark.parametrize("budget", ["macs", "parameters"])
def test_a_budget_is_of_the_whole_network_and_met_by_the_rest(two_blocks, budget):
    options = {"rate": 0.3, "budget": budget, "image_size": 8}
    pruner = Pruner(two_blocks, **options, whole=WHOLE)
    pruner.update(0.3)
    kept = {name: gate.decide() for name, gate in pruner.gates.items()}
    assert pruner.budget.fraction_left(kept) <= 0.7
    with pytest.raises(ValueError, match="is less than the least that can be left"):
        Pruner(two_blocks, **options | {"rate": 0.9}, whole=WHOLE)


def test_a_kept_member_keeps_its_group(two_blocks):
    grouped = left_whole(two_blocks, ["b2"], "structured", "grouped")
    assert grouped == {"stem", "a2", "b2"}
    assert left_whole(two_blocks, ["b2"], "structured", "free") == {"b2"}
    assert left_whole(two_blocks, ["b2"], "unstructured", "grouped") == {"b2"}
    # depth1 reads what stem alone writes, and depth3 what writes the stream
    assert left_whole(Separable(), ["depth1"], "structured") == {"stem", "depth1"}
    assert left_whole(Separable(), ["project"], "structured") == {"point1", "project", "depth3"}


def test_patterns_are_of_paths():
    network = models.build("resnet20")
    first = {name for name in network.units if name.startswith("stage1.")}
    assert left_whole(network, ["stem", "stage1.*"], "structured") == first | {"stem"}
    assert left_whole(network, ["*.conv2"], "structured") == {name for name in network.units if name.endswith("conv2")}
    assert left_whole(network, ["classifier"], "unstructured") == {"classifier"}
    assert left_whole(network, [], "structured") == frozenset()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--keep", "stemm"], "--keep: no layer fits 'stemm': the nearest are stem"),
        (["--keep", "stem", "stage9.*"], "--keep: no layer fits 'stage9.*': the nearest are stage"),
        (["--keep", "Q"], "--keep: no layer fits 'Q': layers are stem, "),
        (["--keep", "classifier"], "'classifier' is classifier, which --prune_type structured never cuts: leave it out"),
        (["--keep", "*"], "--keep: * leaves nothing that --prune_type structured could cut"),
        (["--keep", "stage1.*", "--residual", "grouped", "--prune_rate", "0.999"], "the largest rate is"),
        (
            ["--keep", "stem", "stage1.0.*", "--procedure", "multilayer(phases=6)", "--epochs", "24"],
            "--keep leaves nothing to cut in phase 1 of --procedure multilayer(phases=6)",
        ),
        (
            ["--keep", "stem", "--prune_type", "unstructured", "--prune_gate", "supermask"],
            "--keep has no effect with --prune_gate supermask: weights stay as they begin",
        ),
    ],
)  # fmt: skip
def test_a_pattern_that_is_for_nothing_is_refused(flags, words):
    with pytest.raises(Refused) as caught:
        run_program(*TINY, "--dry_run", "--quiet", "--prune_type", "structured", *flags)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_kept_classifier_cannot_be_cut_by_a_procedure():
    asked = ["--keep", "classifier", "--prune_type", "unstructured", "--procedure", "rounds(classifier=0.5)"]
    with pytest.raises(Refused, match="--keep leaves the classifier whole, of which --procedure rounds"):
        run_program(*TINY, "--dry_run", "--quiet", *asked)


def test_runs_train_resume_and_differ_by_it(tmp_path, monkeypatch):
    for number, kept in enumerate((["a1"], ["a1", "b?"])):
        (tmp_path / str(number)).mkdir()
        found = trains_and_resumes(tmp_path / str(number), monkeypatch, *PRUNED, "--keep", *kept)
        kept_filters = found["rows"][-1]["kept_filters"]
        assert kept_filters["a1"] == 5
        assert "a1.gate.mask" not in found["model"]
        assert ("b1.gate.mask" in found["model"]) == (number == 0)


@pytest.mark.parametrize(
    ("on", "whole", "wanted"),
    [("filters", WHOLE, {"a1", "a2", "b2"}), ("inputs", WHOLE, {"a2"}), ("inputs", {"b1"}, {"stem", "a1", "a2", "classifier"})],
)
def test_gates_that_learn_are_on_the_others(two_blocks, on, whole, wanted):
    filters = {name: two_blocks.get_submodule(name).filters for name in whole}
    learner = Learner(two_blocks, prune_type="structured", gate=f"hard_concrete(on={on!r})", whole=whole)
    gated = {name for name, unit in two_blocks.all_units.items() if unit.gate is not None}
    assert gated == {*learner.gates} == {*learner.units} == wanted
    for gate in learner.gates.values():
        gate.log_alpha.data[1:] = -4.0
    assert learner.cut() == learner.entries - len(wanted)
    smaller = Removal(two_blocks.eval()).compact()
    assert {name: smaller.get_submodule(name).filters for name in whole} == filters


@pytest.mark.parametrize(
    "flags",
    [
        REPAIRED,
        [*REPAIRED, "--procedure", "layerwise(epochs=0)"],
        ["--procedure", "rounds(n=1, fraction=0.5)"],
        ["--procedure", "slimming", "--reg", "bn_l1"],
        ["--prune_gate", "hard_concrete(weight=3000)"],
    ],
)  # fmt: skip
def test_procedures_repairs_and_gates_leave_it_whole(tmp_path, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    rate = [] if "rounds" in flags[1] or flags[0] == "--prune_gate" else ["--prune_rate", "0.5"]
    asked = ["--prune_type", "structured", *rate, *flags, "--keep", "stem", "stage1.0.conv1", "stage3.2.*", "--compact"]
    run_program(*TINY, "--quiet", *asked, "--out_dir", "run")
    kept = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["kept_filters"]
    assert (kept["stem"], kept["stage1.0.conv1"], kept["stage3.2.conv1"], kept["stage3.2.conv2"]) == (16, 16, 64, 64)
    assert sum(kept.values()) < 784


def test_controls_take_it_from_the_run_of_their_tickets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = [*TINY_DATA, "--layers", "20", "--epochs", "1", "--batch_size", "18", "--quiet", "--prune_type", "unstructured"]
    run_program(*weights, "--procedure", "rounds(n=1, fraction=0.5)", "--keep", "stem", "--out_dir", "tickets")
    run_program(*weights, "--procedure", "control(of='tickets')", "--out_dir", "control")
    state = load_checkpoint(tmp_path / "control" / "checkpoint.pt")
    assert state["settings"]["keep"] == ["stem"]
    assert "stem.gate.mask" not in state["model"]
    assert (state["model"]["stage1.0.conv1.gate.mask"] == 0).any()
    assert torch.count_nonzero(state["model"]["stem.layer.weight"]) == state["model"]["stem.layer.weight"].numel()
