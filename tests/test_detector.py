"""A detector is trained, stopped, pruned, removed, tested, exported and used by the commands of the manual, at a tiny size."""

import json
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from boxes import DETECTOR, voc_folder
from conftest import run_program
from PIL import Image
from promises import differences, records

import modeling
import models
import report
from pruning import Pruner, accounting
from settings.arguments import parse
from settings.errors import Refused
from settings.registry import CRITERIA
from tasks import load

# a fraction of a second for each step
ONE = ["--epochs", "1", "--batch_size", "4", "--lr", "0.001", "--device", "cpu", "--amp", "off", "--quiet"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with pictures, `scans`, and the run of a detector of two epochs, `dense`."""
    folder = tmp_path_factory.mktemp("detector")
    voc_folder(folder / "scans")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        flags = ["--data_dir", "scans", "--epochs", "2", "--lr", "0.003", "--deterministic", "--quiet"]
        run_program(*DETECTOR, *flags, "--out_dir", "dense")
        torch.use_deterministic_algorithms(False)
    return folder


@pytest.fixture(scope="module")
def pruned(trained):
    """The run of half its MACs, with its filters taken out, `half`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained)
        cut = ["--prune_type", "structured", "--target_macs", "0.5", "--prune_phase", "init"]
        patch.setattr("deploy.measure.timed", lambda *_: [])
        run_program("--init", "dense", *cut, *ONE, "--compact", "--out_dir", "half")
    return trained


def test_lines_tell_losses_and_precision(trained, monkeypatch, capsys):
    """A finished run says its lines again; of each kind there are as many as epochs."""
    monkeypatch.chdir(trained)
    run_program("--resume", "dense", "--quiet")
    out = capsys.readouterr().out
    number = r"\d+\.\d+"
    assert len(re.findall(rf"^train \d ====> loss {number} boxes {number} labels {number}$", out, re.MULTILINE)) == 2
    assert len(re.findall(rf"^valid \d ====> mAP {number} AP50 {number} AP75 {number} VOC07 {number}$", out, re.MULTILINE)) == 2
    assert re.search(rf"^result test mAP {number} .* after the last epoch \(4 images\)$", out, re.MULTILINE)
    assert len(json.loads(out.strip().splitlines()[-1])) == 5
    rows = [json.loads(line) for line in Path("dense/metrics.jsonl").read_text().splitlines()]
    assert rows[1]["train"]["loss"] < rows[0]["train"]["loss"]
    assert rows[0]["train"]["loss"] == pytest.approx(rows[0]["train"]["boxes"] + rows[0]["train"]["labels"])


def test_a_run_that_was_stopped_ends_the_same(trained, monkeypatch):
    monkeypatch.chdir(trained)
    train = modeling.train_epoch

    def stops(run, epoch, bar):
        if epoch == 1:
            raise KeyboardInterrupt
        return train(run, epoch, bar)

    flags = ["--data_dir", "scans", "--epochs", "2", "--lr", "0.003", "--deterministic", "--quiet", "--out_dir", "stopped"]
    with monkeypatch.context() as patch:
        patch.setattr(modeling, "train_epoch", stops)
        with pytest.raises(KeyboardInterrupt):
            run_program(*DETECTOR, *flags)
    run_program("--resume", "stopped", "--quiet")
    assert differences(records("dense"), records("stopped")) == []


def test_half_of_it_is_the_same_network(pruned, monkeypatch):
    monkeypatch.chdir(pruned)
    summary = json.loads(Path("half/summary.json").read_text())
    assert summary["removal"]["exact"]
    assert summary["removal"]["difference"] <= 1e-4 * summary["removal"]["largest_output"]
    assert summary["removal"]["same"] == summary["removal"]["images"] == 4
    assert 0.49 * summary["dense"]["macs"] < summary["left"]["macs"] <= 0.5 * summary["dense"]["macs"]
    network = models.load("half/model.pt")
    assert network.card.classes == ["blue", "red"]
    assert (network.card.image_size, network.card.fit) == (300, "stretch")
    assert network.scale.filters == network.conv4_3.filters


def test_it_is_tested_exported_and_used(pruned, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(pruned)
    file = str(tmp_path / "m.onnx")
    run_program("--evaluate", "half/model.pt", "--data_dir", "scans", "--export", file, "--device", "cpu", "--quiet")
    out = capsys.readouterr().out
    tested = json.loads(Path("half/summary.json").read_text())["test"]
    assert float(re.search(r"result test mAP (\S+)", out)[1]) == pytest.approx(tested["mAP"], abs=0.01)
    assert re.search(r"result classes by their AP.*blue \S+ \(\d\)", out)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["boxes", "scores"]
    boxes, scores = session.run(None, {"images": np.zeros((3, 300, 300, 3), np.uint8)})
    assert (boxes.shape, scores.shape) == ((3, 8732, 4), (3, 8732, 2))
    assert ((boxes >= 0) & (boxes <= 1)).all()
    assert (scores.sum(2) <= 1 + 1e-5).all()
    with pytest.raises(Refused, match="gives boxes and scores"):
        run_program("--evaluate", file, "--data_dir", "scans", "--device", "cpu")


def test_boxes_are_said_and_drawn(pruned, monkeypatch, capsys, tmp_path):
    """Two sure detections, and one that is not: two lines, and a picture that differs where their edges are."""
    monkeypatch.chdir(pruned)
    found = {"boxes": torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.6, 0.6, 0.9, 0.9], [0, 0, 1, 1]])}
    found |= {"scores": torch.tensor([0.9, 0.6, 0.4]), "labels": torch.tensor([2, 1, 1])}
    monkeypatch.setattr("tasks.detection.detections", lambda *_, **__: [found])
    drawn = tmp_path / "drawn"
    run_program("--predict", "half/model.pt", "scans/JPEGImages/p001.png", "--draw", str(drawn), "--device", "cpu")
    assert capsys.readouterr().out.splitlines() == [
        "scans/JPEGImages/p001.png: red 0.9000 at 9.0 14.0 45.0 42.0",
        "scans/JPEGImages/p001.png: blue 0.6000 at 54.0 42.0 81.0 63.0",
    ]
    before, after = (np.asarray(Image.open(path)).astype(int) for path in ("scans/JPEGImages/p001.png", drawn / "p001.png"))
    assert before.shape == after.shape
    changed = (before != after).any(2)
    assert changed[42, 10:44].all()
    assert changed[20:40, 9].all()
    assert not changed[28:40, 55:80].any()


def test_a_classifier_draws_no_boxes(pruned, monkeypatch, tmp_path):
    from models import Card

    network = models.build("resnet20", classes=2)
    models.save(tmp_path / "model.pt", network, Card("resnet20", ["a", "b"], 32, [127.0] * 3, [60.0] * 3))
    monkeypatch.chdir(tmp_path)
    picture = str(pruned / "scans/JPEGImages/p001.png")
    with pytest.raises(Refused, match="finds no boxes"):
        run_program("--predict", "model.pt", picture, "--draw", "drawn", "--device", "cpu")


def test_it_is_pruned_in_four_phases(trained, monkeypatch):
    """Each phase takes filters of its own layers alone, and the layer behind them loses inputs."""
    monkeypatch.chdir(trained)
    monkeypatch.setattr("deploy.measure.timed", lambda *_: [])
    criterion = "zero_fraction(counts='multilayer', threshold=0.1, own=0.4, own_at_least=0.2, readers=0.4)"
    flags = ["--procedure", "multilayer(phases=4)", "--prune_imp", criterion, "--compact", "--out_dir", "phases"]
    run_program("--init", "dense", *ONE, *flags, "--epochs", "8")
    rows = [json.loads(line) for line in Path("phases/metrics.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == [f"phase {n}, {what}" for n in (1, 2, 3, 4) for what in ("sparsity", "retraining")]
    assert ["l1" in row["train"] for row in rows] == 4 * [True, False]
    parts = models.build("ssd300_vgg16(width=0.03)", classes=2).parts(4)
    for number, part in enumerate(parts):
        before, after = rows[2 * number]["kept_filters"], rows[2 * number + 1]["kept_filters"]
        lost = {name for name in before if after[name] < before[name]}
        assert set() < lost <= {*part}
    summary = json.loads(Path("phases/summary.json").read_text())
    assert [record["cut"] > 0 for record in summary["selections"]] == 4 * [True]
    left = [record["parameters_left"] for record in summary["selections"]]
    assert left == sorted(left, reverse=True)
    network = models.load("phases/model.pt")
    assert network.scale.filters == network.conv4_3.filters == network.conv5_1.weight.shape[1]
    assert accounting.dense(network, 300).macs == summary["left"]["macs"]
    assert report.main(["dense", "phases", "--plots", "figures"]) == 0
    assert {"phases.png", "precision_phases.png", "precision_dense.png"} <= {path.name for path in Path("figures").iterdir()}


@pytest.mark.parametrize(("nothing_reads", "kept"), [(("conv5_1", "boxes1", "classes1"), False), (("conv5_1",), True)])
def test_what_reads_a_channel_reads_it_behind_its_scale(nothing_reads, kept):
    """A filter goes if conv5_1 and the heads hardly read it, whatever its scale is; and the scale goes with it."""
    torch.manual_seed(0)
    network = models.build("ssd300_vgg16(width=0.02)", classes=2)
    with torch.no_grad():
        for name in nothing_reads:
            network.get_submodule(name).weight[:, 0] = 0
    criterion = "zero_fraction(counts='multilayer', threshold=1e-9, own=1.0, own_at_least=0.0, readers=0.95)"
    pruner = Pruner(network, criterion=criterion, rate=0.0, image_size=300)
    scores = pruner.scores()
    assert torch.equal(scores["scale"], scores["conv4_3"])
    assert bool(scores["conv4_3"][0]) == kept
    assert scores["conv4_3"][1:].all()


@pytest.mark.parametrize("criterion", [name for name, entry in CRITERIA.entries.items() if "initial weights" not in entry.traits])
def test_every_criterion_scores_a_detector(trained, criterion, monkeypatch):
    monkeypatch.chdir(trained)
    settings = parse([*DETECTOR, "--data_dir", "scans"])
    task = load(settings.data, batch_size=4, seed=0, device="cpu")
    torch.manual_seed(0)
    network = models.build("ssd300_vgg16(width=0.02)", classes=2)
    option = {"zero_fraction": "(threshold=0.1)", "LcP": "(evaluations=3)"}.get(criterion, "")
    pruner = Pruner(network, criterion=criterion + option, rate=0.3, image_size=300)
    pruner.look_at(lambda: task.sample(1), task)
    scores = pruner.scores()
    assert scores.keys() == network.units.keys()
    assert all(score.shape == (network.units[name].filters,) for name, score in scores.items())
    pruner.update(0.3)
    assert torch.equal(network.conv4_3.live, network.scale.live)
    assert 0.2 < pruner.cut() / pruner.entries < 0.4


@pytest.mark.parametrize(("flags", "message"), [
    (["--init", "dense", "--dataset", "digits"], "is for detection, and --dataset digits for classification"),
    (["--dataset", "voc", "--data_dir", "scans", "--layers", "20"], "resnet20 is for classification"),
    (["--dataset", "voc", "--data_dir", "scans", "--arch", "ssd300_vgg16", "--image_size", "64"], "takes images of 300 pixels"),
    (["--init", "dense", "--procedure", "multilayer(phases=400)", "--epochs", "800"], "400 parts of a network"),
    (["--init", "dense", "--reg", "l1(part=(3, 2))"], "there is no part 3 of 2"),
    (["--dataset", "digits", "--layers", "20", "--teacher", "./dense"], "'./dense' has 12 outputs"),
    (["--init", "dense", "--teacher", "dense"], "--teacher is for networks that name the class"),
    (["--init", "dense", "--form", "int8"], "--form int8 is for networks that name the class"),
    (["--init", "dense", "--augment", "randaugment"], "randaugment has no effect on voc"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(trained, monkeypatch, flags, message):
    monkeypatch.chdir(trained)
    with pytest.raises(Refused, match=message) as caught:
        run_program(*flags, "--device", "cpu", "--out_dir", "refused")
    assert "\n" not in str(caught.value)
    assert not Path("refused").exists()


def test_runs_are_reported(pruned, monkeypatch):
    monkeypatch.chdir(pruned)
    assert report.main(["dense", "half"]) == 0
