"""Runs with --factorise: what they print and keep, what goes on from them, and that a kill changes nothing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY_DATA, run_program
from promises import differences, records, trains_and_resumes

import modeling
import models
from pruning import accounting
from settings.arguments import parse
from settings.errors import Refused
from training.stages import plan_of

SMALL = [*TINY_DATA, "--epochs", "2", "--batch_size", "27", "--deterministic", "--quiet"]
NARROW = ["--arch", "resnet20(widen=0.25)"]
HALF = ["--factorise", "tucker(macs=0.5)"]
PRUNED = ["--prune_type", "structured", "--prune_rate", "0.3", "--compact"]


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """The folder of a trained run of a narrow ResNet-20."""
    folder = tmp_path_factory.mktemp("factorised") / "dense"
    run_program(*SMALL, *NARROW, "--epochs", "1", "--out_dir", str(folder))
    return folder


def summary(folder) -> dict:
    return json.loads(Path(folder, "summary.json").read_text())


def check_file(folder, images: int = 16) -> models.Network:
    """The model.pt of a run is what its summary says."""
    network, told = models.load(Path(folder, "model.pt")), summary(folder)
    assert network.factors
    count = accounting.dense(network, images)
    assert (count.parameters, count.macs) == (told["left"]["parameters"], told["left"]["macs"])
    assert count.parameters == told["factorisation"]["parameters"]["after"]
    assert [layer["layer"] for layer in told["factorisation"]["layers"]] == [*network.factors]
    return network


@pytest.mark.parametrize("how", ["tucker(macs=0.5)", "tucker(ranks='VBMF')", "svd(fraction=0.3)"])
def test_a_trained_network_is_factorised_before_the_first_epoch(how, dense, tmp_path, capsys):
    out, images = tmp_path / "run", next(Path(TINY_DATA[3]).glob("test/*/*.png"))
    run_program(
        "--init", str(dense), "--factorise", how, "--epochs", "1", "--lr", "0.01", "--batch_size", "27", "--out_dir", str(out)
    )
    said, told = capsys.readouterr(), summary(out)
    check_file(out)
    record = told["factorisation"]
    assert record["macs"]["after"] < record["macs"]["before"] == told["dense"]["macs"]
    assert record["layers"][0]["error"] > 0
    first = record["layers"][0]
    assert f"layer {first['layer']}: ranks " in said.err
    assert all(f"layer {name} stays: {reason}" in said.err for name, reason in record["whole"].items())
    assert f"result factorisation: {len(record['layers'])} layers, {len(record['whole'])} stay" in said.out
    # what the accuracy was before is that of the run that it began with, in float32 or bfloat16 alike
    last = json.loads(Path(dense, "metrics.jsonl").read_text().splitlines()[-1])["valid"]
    assert record["accuracy"]["before"] == pytest.approx(last["top1"])
    if "macs" in how:
        assert record["macs"]["after"] <= 0.5 * record["macs"]["before"]
    run_program("--evaluate", str(out / "model.pt"), "--device", "cpu", "--quiet")
    run_program("--predict", str(out / "model.pt"), str(images), "--quiet")
    said = capsys.readouterr().out
    assert "result test accuracy" in said
    assert f"{images}: " in said


def test_a_dry_run_tells_the_plan_and_writes_nothing(dense, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_program("--init", str(dense), *HALF, "--lr", "0.01", "--batch_size", "4", "--dry_run")
    assert "stage training: factorise, then 300 epochs at learning rate 0.01" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_pruned_filters_go_first_and_the_rest_is_factorised(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_program(*SMALL, *NARROW, *PRUNED, *HALF, "--finetune_epochs", "1", "--out_dir", "run")
    check_file("run")
    told = summary("run")
    assert told["removal"]["exact"]
    assert told["factorisation"]["macs"]["before"] < told["dense"]["macs"]
    assert told["factorisation"]["macs"]["after"] <= 0.5 * told["factorisation"]["macs"]["before"]
    rows = [json.loads(line) for line in Path("run", "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["kept_filters"] == rows[-2]["kept_filters"]  # factors count as the layer that they stand for
    assert rows[-1]["macs_left"] == pytest.approx(told["left"]["macs"] / told["dense"]["macs"], abs=1e-6)
    # a run that has ended prints the same again
    capsys.readouterr()
    run_program("--resume", "run", "--quiet")
    assert "result factorisation" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [HALF, [*HALF, *PRUNED]], ids=["trained", "pruned"])
def test_at_the_end_of_a_run_a_kill_changes_nothing(flags, tmp_path, monkeypatch):
    flags = [*NARROW, *flags, "--finetune_epochs", "2", "--finetune_lr", "0.01"]
    for at in (1, 2, 3):
        (folder := tmp_path / str(at)).mkdir()
        whole = trains_and_resumes(folder, monkeypatch, *flags, network=None, at=at)
        assert whole["shapes"]["factors"]


@pytest.mark.parametrize("at", [0, 1])
def test_at_the_begin_of_a_run_a_kill_changes_nothing(at, dense, tmp_path, monkeypatch):
    """Also with the checkpoint that is written before the first step, when layers are factorised already."""
    monkeypatch.chdir(tmp_path)
    train = modeling.train_epoch

    def copies_before(run, epoch, bar):
        if epoch == at and not Path("part").exists():
            shutil.copytree("whole", "part")
        return train(run, epoch, bar)

    monkeypatch.setattr(modeling, "train_epoch", copies_before)
    run_program(*SMALL, "--init", str(dense), *HALF, "--lr", "0.01", "--out_dir", "whole")
    run_program("--resume", "part", "--quiet")
    whole = records("whole")
    assert differences(whole, records("part")) == []
    assert whole["results"]["factorisation"]["layers"]
    assert summary("whole")["test"] == summary("part")["test"]


def test_a_factorised_run_and_a_smaller_one_are_begun_with(dense, tmp_path, monkeypatch):
    """Trained on, pruned and factorised again, from a folder or a file; each comes to its bits after a kill too."""
    monkeypatch.chdir(tmp_path)
    run_program(*SMALL, "--init", str(dense), *HALF, "--out_dir", "factors")
    run_program(*SMALL, *NARROW, *PRUNED, "--out_dir", "small")
    before = {name: accounting.dense(models.load(f"{name}/model.pt"), 16) for name in ("factors", "small")}
    for number, (init, flags) in enumerate([
        ("factors", []),
        ("factors/model.pt", PRUNED),
        ("small/model.pt", HALF),
        ("small", [*PRUNED, "--factorise", "tucker(params=0.6)"]),
    ]):  # fmt: skip
        folder = tmp_path / f"from{number}"
        folder.mkdir()
        shutil.copytree(init.split("/")[0], folder / init.split("/")[0])
        trains_and_resumes(folder, monkeypatch, "--init", init, *flags, network=None)
        monkeypatch.chdir(tmp_path)
        told = summary(folder / "whole")
        assert (told["dense"]["parameters"], told["dense"]["macs"]) == (
            before[init.split("/")[0]].parameters,
            before[init.split("/")[0]].macs,
        )
        assert (told["left"]["macs"] < told["dense"]["macs"]) == bool(flags)


def test_a_factorised_network_is_exported_and_checked(dense, tmp_path):
    file = tmp_path / "m.pt2"
    run_program(*SMALL, "--init", str(dense), *HALF, "--epochs", "1", "--out_dir", str(tmp_path / "run"), "--export", str(file))
    assert summary(tmp_path / "run")["exports"][0]["difference"] < 1e-3


def test_a_factorised_network_is_trained_anew_from_fresh_weights(dense, tmp_path):
    run_program(*SMALL, "--init", str(dense), *HALF, "--epochs", "1", "--out_dir", str(tmp_path / "run"))
    run_program(*SMALL, "--procedure", f"scratch(of='{tmp_path / 'run'}')", "--epochs", "1", "--out_dir", str(tmp_path / "anew"))
    assert summary(tmp_path / "anew")["left"] == summary(tmp_path / "run")["left"]


def test_a_budget_out_of_reach_is_refused_before_anything_is_written(dense, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for flags in (["--init", str(dense)], NARROW):
        with pytest.raises(Refused, match=r"--factorise tucker\(macs=0.001\): 0.001 of the MACs cannot be reached"):
            run_program(*SMALL, *flags, "--factorise", "tucker(macs=0.001)")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_met_after_pruning_leaves_the_layers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = [word for word in SMALL if word != "--quiet"]
    run_program(*flags, *NARROW, *PRUNED, "--prune_rate", "0.8", "--factorise", "tucker(macs=0.2)")
    (folder,) = Path("result").iterdir()
    assert folder.name == "resnet20_widen_0.25-structured-0.8-tucker"
    record, said = summary(folder)["factorisation"], capsys.readouterr().err
    assert record["layers"] == []
    assert "WARNING --factorise tucker(macs=0.2): 0.2 of the MACs cannot be reached" in said
    assert record["parameters"]["before"] == record["parameters"]["after"]
    assert summary(folder)["left"]["macs"] == record["macs"]["after"]


@pytest.mark.parametrize(("flags", "words"), [
    (["--factorise", "tucker"], "needs exactly one of"),
    (["--factorise", "tucker(macs=0.5, fraction=0.5)"], "not fraction and macs"),
    (["--factorise", "tucker(weaken=0.5, macs=0.5)"], "no effect without ranks='VBMF'"),
    (["--factorise", "tucker(macs=1.0)"], "above 0 and below 1"),
    (["--factorise", "cp(macs=0.5)"], "unknown factorisation 'cp'"),
    ([*HALF, "--prune_type", "structured"], "it needs --compact"),
    ([*HALF, "--prune_type", "unstructured"], "no mask of --prune_type unstructured"),
    ([*HALF, "--reg", "group_lasso"], "it needs --compact"),
])  # fmt: skip
def test_contradictions_are_refused(flags, words):
    with pytest.raises(Refused) as caught:
        parse(flags)
    assert words in str(caught.value)


def stages(*flags) -> list[tuple]:
    return [(stage.name, stage.enter) for stage in plan_of(parse(["--epochs", "5", *HALF, *flags])).stages]


def test_when_layers_are_factorised(dense):
    assert stages("--init", str(dense)) == [("training", ("factorise",))]
    assert stages() == [("training", ()), ("fine-tuning", ("factorise",))]
    assert stages(*PRUNED) == [("training", ()), ("fine-tuning", ("remove", "factorise"))]
    assert stages(*PRUNED, "--init", str(dense))[-1] == ("fine-tuning", ("remove", "factorise"))


def test_two_runs_of_one_command_are_the_same(dense, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        run_program(*SMALL, "--init", str(dense), *HALF, "--out_dir", name)
    assert differences(records("one"), records("two")) == []
    assert torch.load("one/checkpoint.pt", weights_only=True)["shapes"]["factors"]
