"""These tests hold a run of 0 epochs to what it promises: it cuts, repairs, measures, removes and saves, and trains nothing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY_DATA, narrow, run_program
from promises import PRUNED, STEPS, differences, records

import modeling
import models
import report
from models.files import load
from settings.errors import Refused

pytestmark = pytest.mark.core

AT_ONCE = ["--init", "dense", "--prune_phase", "init", "--epochs", "0"]
BUILD = models.build


@pytest.fixture(autouse=True)
def _dense(tmp_path, monkeypatch):
    """A trained network in the folder dense; networks have an eighth of their filters, and are read as such."""
    monkeypatch.chdir(tmp_path)
    for place in ("models.build", "models.files.build"):
        monkeypatch.setattr(place, lambda name, **options: narrow(BUILD(name, **options)))
    monkeypatch.setattr(modeling.measure, "timed", lambda *_: [])
    run_program(*STEPS, "--layers", "20", "--epochs", "1", "--out_dir", "dense")


def summary(folder: str) -> dict:
    return json.loads(Path(folder, "summary.json").read_text())


def test_what_is_cut_is_what_training_would_begin_with(capsys):
    run_program(*STEPS, *AT_ONCE, *PRUNED, "--compact", "--out_dir", "cut")
    lines = capsys.readouterr().out.splitlines()
    run_program(*STEPS, *AT_ONCE, *PRUNED, "--epochs", "1", "--out_dir", "trained")
    (row,) = records("trained")["rows"]
    smaller, whole = load("cut/model.pt"), load("dense/model.pt")
    assert {name: unit.filters for name, unit in smaller.units.items()} == row["kept_filters"]
    assert 0 < row["cut"] == sum(unit.filters for unit in whole.units.values()) - sum(row["kept_filters"].values())
    kept = [any(torch.equal(bias, other) for other in whole.stem.norm.weight) for bias in smaller.stem.norm.weight]
    assert all(kept)  # weights are those of the trained network
    told = summary("cut")
    assert told["removal"]["exact"]
    assert told["removal"]["same"] == told["removal"]["images"] == 24
    assert told["left"] == summary("trained")["left"]
    assert not {"last", "best"} & told.keys()
    assert told["valid"]["images"] == 6
    assert f"result accuracy: {told['valid']['top1']:.2f} without training (6 held-out images)" in lines
    assert f"result test accuracy: {told['test']['top1']:.2f} without training (24 images)" in lines
    assert not any(line.startswith(("train", "valid", "result seconds", "[")) for line in lines)


def test_single_weights_are_cut_as_by_hand():
    cut = ["--prune_type", "unstructured", "--prune_rate", "0.5", "--prune_imp", "L1", "--prune_scope", "local"]
    run_program(*STEPS, *AT_ONCE, *cut, "--out_dir", "cut")
    before, after = load("dense/model.pt").all_units, load("cut/model.pt").all_units
    for name, unit in before.items():
        weights, left = unit.weight.flatten(), after[name].weight.flatten()
        zeros = int((left == 0).sum())
        assert abs(zeros - 0.5 * len(weights)) <= 1
        by_hand = weights.clone()
        by_hand[weights.abs().argsort(stable=True)[:zeros]] = 0
        assert torch.equal(left, by_hand)


def test_a_cut_is_repaired():
    told = {}
    for method in ([], ["--reconstruct", "least_squares(rows=600, images=54)"]):
        name = "repaired" if method else "cut"
        run_program(*STEPS, *AT_ONCE, *PRUNED, *method, "--compact", "--out_dir", name)
        told[name] = summary(name)
    layers = told["repaired"]["reconstruction"]
    assert any(layer["error"] is not None and layer["error"] < layer["error_cut"] for layer in layers)
    assert told["repaired"]["left"]["filters"] < told["repaired"]["dense"]["filters"]
    assert "reconstruction" not in told["cut"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--prune_type", "structured", "--target_macs", "0.6", "--recalibrate", "2", "--compact"],
        ["--prune_type", "unstructured", "--prune_rate", "0.6", "--prune_imp", "SynFlow", "--prune_phase", "init(rounds=3)"],
        ["--factorise", "svd(fraction=0.5)"],
        ["--prune_type", "structured", "--prune_rate", "0.3", "--compact", "--factorise", "svd(fraction=0.5)"],
    ],
)
def test_it_goes_on_after_a_kill_and_repeats_its_end(monkeypatch, capsys, flags):
    save = modeling.measure.save_network

    def copies(run, result, path):
        if not Path("part").exists():
            shutil.copytree(path.parent, "part")
        return save(run, result, path)

    monkeypatch.setattr(modeling.measure, "save_network", copies)
    at_once = ["--init", "dense", "--epochs", "0", *(["--prune_phase", "init"] if "--prune_type" in flags else [])]
    run_program(*STEPS, *at_once, *flags, "--out_dir", "whole")
    said = capsys.readouterr().out
    run_program("--resume", "part", "--quiet")
    assert capsys.readouterr().out == said.replace("whole/", "part/")
    assert differences(load("whole/model.pt").state_dict(), load("part/model.pt").state_dict()) == []
    for name in ("removal", "factorisation", "left", "dense", "valid", "test"):
        assert summary("whole").get(name) == summary("part").get(name)
    run_program("--resume", "whole", "--quiet")
    assert capsys.readouterr().out == said
    assert report.main(["whole", "dense", "--plots", "plots"]) == 0
    assert report.main(["whole", "dense", "--layers", "--no_plots"]) == 2  # there is no epoch to tell of
    with pytest.raises(Refused, match="--epochs 3 contradicts the run in 'whole', which has 0"):
        run_program("--resume", "whole", "--epochs", "3")


def test_more_can_be_asked_for_later(capsys):
    run_program(*STEPS, *AT_ONCE, *PRUNED, "--out_dir", "run")
    assert "model.pt" not in {path.name for path in Path("run").iterdir()}
    run_program("--resume", "run", "--compact", "--quiet")
    assert summary("run")["removal"]["exact"]
    run_program("--resume", "run", "--finetune_epochs", "1", "--quiet")
    assert summary("run")["last"]["epoch"] == 0
    assert "train 0" in capsys.readouterr().out
    run_program(*STEPS, *AT_ONCE, *PRUNED, "--compact", "--finetune_epochs", "1", "--ema", "0.5", "--out_dir", "tuned")
    assert summary("tuned")["last"]["stage"] == "fine-tuning"


def test_weights_from_elsewhere_are_taken_in_so_that_they_teach():
    torch.save({f"module.{name}": value for name, value in load("dense/model.pt").state_dict().items()}, "elsewhere.pth")
    student = [*STEPS, "--layers", "20", "--epochs", "1"]
    with pytest.raises(
        Refused, match=r"--teacher: 'elsewhere.pth' is from elsewhere: .* --init elsewhere.pth --epochs 0"
    ) as caught:
        run_program(*student, "--teacher", "elsewhere.pth", "--out_dir", "refused")
    assert "\n" not in str(caught.value)
    with pytest.raises(Refused, match="--teacher: 'torchvision:IMAGENET1K_V1' is from elsewhere"):
        run_program(*student, "--teacher", "torchvision:IMAGENET1K_V1")
    run_program(*STEPS, "--arch", "resnet20", "--init", "elsewhere.pth", "--epochs", "0", "--out_dir", "taken")
    assert differences(load("taken/model.pt").state_dict(), load("dense/model.pt").state_dict()) == []
    assert summary("taken")["test"]["top1"] == summary("dense")["test"]["top1"]
    for teacher in ("taken", "dense"):
        run_program(*student, "--teacher", f"{teacher}/model.pt", "--distill", "KD", "--out_dir", f"by_{teacher}")
    one, other = records("by_taken"), records("by_dense")
    assert differences(one["model"], other["model"]) == []
    state = load("dense/model.pt").state_dict()
    state |= {name: torch.cat([state[name]] * 2) for name in state if name.startswith("classifier.")}
    torch.save(state, "more.pth")
    with pytest.raises(Refused, match=r"--epochs 0: the classifier of 'more.pth' does not fit, and the new one would learn"):
        run_program(*STEPS, "--arch", "resnet20", "--init", "more.pth", "--epochs", "0", "--out_dir", "new")


def test_a_dry_run_shows_it(capsys):
    flags = [flag for flag in STEPS if flag != "--quiet"]
    run_program(*flags, *AT_ONCE, *PRUNED, "--compact", "--dry_run")
    said = capsys.readouterr()
    assert "stage no training: cut_first, then no epochs" in said.err
    assert "without training" in said.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layers", "20"], "--epochs 0 trains nothing: it needs --init"),
        (["--layers", "20", *PRUNED, "--prune_phase", "init"], "--epochs 0 trains nothing: it needs --init"),
        (["--init", "dense", *PRUNED], "--epochs 0 ends before --prune_phase dynamic has cut all: it needs --prune_phase init"),
        (
            ["--init", "dense", *PRUNED, "--prune_phase", "after", "--prune_until", "0.5"],
            "ends before --prune_phase after has cut all",
        ),
        (["--init", "dense", *PRUNED, "--rounds", "2"], "ends before --prune_phase iterative has cut all"),
        (["--init", "dense", "--prune_type", "unstructured", "--procedure", "rounds(n=2)"], "rounds is a plan of training"),
        (["--init", "dense", "--reg", "group_lasso"], "and --reg group_lasso sets filters to 0 in training"),
        (["--init", "dense", "--reg", "l1"], "--reg has no effect with --epochs 0, which trains nothing"),
        (["--init", "dense", "--ema", "0.9"], "--ema has no effect with --epochs 0"),
        (["--init", "dense", "--teacher", "dense"], "--teacher has no effect with --epochs 0"),
        (["--init", "dense", "--freeze", "1"], "--freeze 1 leaves none of 0 epochs"),
        (["--init", "dense", "--warmup_epochs", "1"], "--warmup_epochs 1 leaves none of 0 epochs"),
    ],
)
def test_where_it_makes_no_sense_it_is_refused_in_one_line(flags, message):
    with pytest.raises(Refused) as caught:
        run_program(*TINY_DATA, "--epochs", "0", *flags, "--out_dir", "run")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("run").exists()


def test_after_is_at_once_for_a_trained_network():
    run_program(*STEPS, *AT_ONCE, *PRUNED, "--prune_phase", "after", "--compact", "--out_dir", "after")
    run_program(*STEPS, *AT_ONCE, *PRUNED, "--compact", "--out_dir", "init")
    assert differences(load("after/model.pt").state_dict(), load("init/model.pt").state_dict()) == []
