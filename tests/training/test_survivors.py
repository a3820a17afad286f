"""A run whose survivors are updated: the commands as written, its lines, its stops, and what is lost by none."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from conftest import TINY_DATA, TwoBlocks, run_program
from promises import STEPS, differences, records

import models
from pruning.survivors import Survivors
from settings.errors import Stopped

WEIGHTS = ["--prune_type", "unstructured", "--prune_rate", "0.9", "--prune_phase", "init", "--lr", "0.01"]
OBS = [*WEIGHTS, "--prune_imp", "OBS", "--reconstruct", "hessian(images=54, steps=2)"]


@pytest.fixture
def dense(tmp_path, monkeypatch):
    """The folder of a trained small network, which all names of networks mean in this test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "build", lambda _, classes=10, **__: TwoBlocks(classes=classes))
    run_program(*STEPS, "--epochs", "1", "--out_dir", "dense")
    return "dense"


@pytest.mark.parametrize("repair", [[], ["--reconstruct", "hessian"]])
def test_the_commands_of_the_manual(dense, repair):
    imp = "OBS" if repair else "OBD"
    run_program(*STEPS, "--init", dense, *WEIGHTS, "--prune_imp", imp, *repair, "--out_dir", "run")
    rows, config = records("run")["rows"], json.loads(Path("run/config.json").read_text())["settings"]
    assert config["prune_scope"] == "global(normalise='none')"
    assert [row["stage"] for row in rows] == ["after the cut" if repair else "training"] * 2
    weights = sum(unit.weight.numel() for unit in TwoBlocks(classes=3).all_units.values())
    assert {row["cut"] for row in rows} == {int(0.9 * weights + 1e-9)}
    summary = json.loads(Path("run/summary.json").read_text())
    assert len(summary.get("reconstruction", [])) == len(repair) / 2


def test_stopped_it_goes_on_to_the_same_bits(dense):
    for name in ("whole", "part"):
        run_program(*STEPS, "--init", dense, *OBS, "--epochs", "2", "--out_dir", name)
    assert differences(records("whole"), records("part")) == []
    shutil.copy("part/previous.pt", "part/checkpoint.pt")  # as if it had been killed while the last one was written
    shutil.rmtree(dense)
    Path("part/summary.json").unlink()
    run_program("--resume", "part", "--quiet")
    assert differences(records("whole"), records("part")) == []
    steps = [json.loads(Path(name, "summary.json").read_text())["reconstruction"] for name in ("whole", "part")]
    assert [step | {"seconds": 0} for step in steps[0]] == [step | {"seconds": 0} for step in steps[1]]


def test_a_signal_is_heard_between_steps(dense, monkeypatch):
    put, done = Survivors.put, []

    def interrupted(*arguments, **rest):
        done.append(1)
        signal.raise_signal(signal.SIGTERM)
        put(*arguments, **rest)

    monkeypatch.setattr(Survivors, "put", interrupted)
    with pytest.raises(Stopped, match="SIGTERM before the stage after the cut"):
        run_program(*STEPS, "--init", dense, *OBS, "--out_dir", "run")
    assert len(done) == 1
    assert not Path("run").exists()


def test_what_is_said_of_each_step(dense, capsys):
    run_program(*TINY_DATA, "--epochs", "1", "--batch_size", "27", "--init", dense, *OBS)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step")]
    assert [line.split(":")[0] for line in lines] == ["step 1", "step 2"]
    assert all(" pieces cut; loss " in line and " predicted (54 images, " in line for line in lines)


def test_the_same_network_has_the_same_masks_whoever_repairs(dense):
    """One step cuts what the criterion chooses without a repair."""
    for method in ("none", "hessian"):
        flags = [*STEPS, "--epochs", "1", "--init", dense, *WEIGHTS, "--prune_imp", "OBS", "--reconstruct", method]
        run_program(*flags, "--out_dir", method)
    one, other = (records(method)["model"] for method in ("none", "hessian"))
    masks = [name for name in one if name.endswith("mask")]
    assert masks
    assert all(bool((one[name] == other[name]).all()) for name in masks)
