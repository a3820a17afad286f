"""Runs that look like earlier pruned ones: what is read of those without a model.pt, and what is sampled by their patterns."""

import json
from pathlib import Path

import pytest
import torch
from conftest import run_program
from promises import STEPS, trains_and_resumes

import models
from pruning.guided import fractions
from settings.errors import Refused
from training.earlier_networks import patterns_of, widths_of

pytestmark = pytest.mark.core

CUT = ["--prune_type", "unstructured", "--prune_rate", "0.7", "--prune_phase", "init"]
# runs that cut filters without --compact, by masks, gates that learn, and exact zeros
BY_FILTER = {
    "masks": ["--prune_type", "structured", "--prune_rate", "0.4", "--prune_gate", "soft"],
    "gates": ["--prune_type", "structured", "--prune_gate", "hard_concrete(droprate=0.916)"],
    "inputs": ["--prune_type", "structured", "--prune_gate", "hard_concrete(droprate=0.916, on='inputs')"],
    "scales": ["--reg", "sss(of='filter')", "--odecay", "1.25", "--lr", "0.1"],
    "zeros": ["--reg", "group_lasso", "--odecay", "7", "--lr", "0.1"],
}


@pytest.fixture
def dense(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_program(*STEPS, "--epochs", "1", "--layers", "20", "--out_dir", "dense")


@pytest.mark.parametrize("name", BY_FILTER)
def test_the_widths_of_a_run_are_those_that_it_ended_with(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    run_program(*STEPS, "--layers", "20", *BY_FILTER[name], "--out_dir", "run")
    kept = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])["kept_filters"]
    whole = models.build("resnet20")
    assert 0 < sum(kept.values()) < sum(unit.filters for unit in whole.units.values())
    before = torch.get_rng_state()
    assert widths_of(["run"]) == fractions(whole, kept, 16)
    torch.set_rng_state(before)


def test_a_sampled_network_has_the_mean_pattern_and_keeps_it(dense, tmp_path, monkeypatch):
    for seed in ("1", "2"):
        run_program(*STEPS, "--layers", "20", "--epochs", "1", *CUT, "--seed", seed, "--out_dir", f"sparse{seed}")
    flags = ["--layers", "32", "--pattern", "sparse1", "sparse2"]
    whole = trains_and_resumes(tmp_path, monkeypatch, *flags, network=None)
    found = patterns_of(["sparse1", "sparse2"])
    for name, width in (("stage1.3.conv2", 16), ("stage3.2.conv1", 64)):
        mask = whole["model"][f"{name}.gate.mask"]
        stage = (int(name[5]) - 1, 3, 3)
        assert torch.equal(mask.sum((0, 1)), (found[stage] * width * width + 0.5).floor().float())
    assert [row["mask_changes"] for row in whole["rows"]] == [0, 0]
    assert whole["rows"][0]["cut"] == whole["rows"][1]["cut"] > 0
    config = json.loads(Path("whole/config.json").read_text())
    assert config["plan"][0]["enter"] == ["sparsify(like=('sparse1', 'sparse2'))"]
    assert config["settings"]["pattern"] == ["sparse1", "sparse2"]
    assert (config["settings"]["prune_type"], config["settings"]["prune_rate"]) == ("unstructured", 0.0)


@pytest.mark.parametrize(("flags", "words"), [
    (["--pattern", "dense"], "^--pattern: no single weight has been cut from 'dense'$"),
    (["--pattern", "dense", "--prune_type", "kernels"], "^--prune_type has no effect with --pattern"),
    (["--pattern", "dense", "--procedure", "slimming", "--reg", "bn_l1"], "takes out whole filters"),
    (["--pattern", "dense", "--compact"], "--compact takes out whole filters"),
    (["--pattern", "dense", "--prune_rate", "0.5"], "^--prune_rate has no effect with --pattern"),
    (["--widths", "dense"], "^--widths: no filter has been cut from 'dense'$"),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(dense, flags, words):
    with pytest.raises(Refused, match=words) as caught:
        run_program(*STEPS, "--layers", "20", *flags, "--out_dir", "run")
    assert "\n" not in str(caught.value)
    assert not Path("run").exists()
