"""A run begins with a network of this program that knows other classes: its classifier is new, and all else is kept."""

import re
from pathlib import Path

import pytest
import torch
from conftest import TINY_DATA, run_program
from promises import trains_and_resumes

import models
from models.factorised import take_apart
from pruning import Pruner
from pruning.removal import Removal
from settings.errors import Refused

SHORT = [*TINY_DATA, "--epochs", "1", "--batch_size", "27", "--lr", "1e-30", "--weight_decay", "0"]


@pytest.fixture
def smaller(tmp_path, monkeypatch):
    """A pruned network of seven classes, in model.pt of an empty folder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = models.build("resnet20", classes=7)
    Pruner(network, rate=0.5).update(0.5)
    network = Removal(network.eval()).compact()
    models.save("model.pt", network, models.Card("resnet20", [*"abcdefg"], 16, [127.0] * 3, [60.0] * 3))
    return network


def test_all_but_the_classifier_is_kept(smaller, capsys):
    run_program(*SHORT, "--init", "model.pt", "--out_dir", "run")
    said = capsys.readouterr().err
    assert "the classifier is new, for 3 classes instead of 7, so that nothing is measured before training" in said
    assert "from elsewhere" not in said
    assert "--normalise" not in said
    assert "'model.pt' was trained on other classes (a, b, c, d, e) than these (blue, green, red)" in said
    ours, theirs = torch.load("run/checkpoint.pt", weights_only=True)["model"], smaller.state_dict()
    assert ours.keys() == theirs.keys()
    learned = [name for name in ours if not name.startswith("classifier") and name.endswith(("weight", "bias"))]
    assert len(learned) > 60
    for name in learned:
        torch.testing.assert_close(ours[name], theirs[name], msg=name)
    weight = ours["classifier.layer.weight"]
    assert weight.shape == (3, theirs["classifier.layer.weight"].shape[1])
    # drawn anew, and not what memory held: the deviation of He et al. is sqrt(2 / inputs)
    assert 0.7 < weight.std() / (2 / weight.shape[1]) ** 0.5 < 1.3
    assert ours["classifier.layer.bias"].abs().max() < 1e-20
    run_program(*SHORT, "--init", "model.pt", "--out_dir", "again")
    again = torch.load("again/checkpoint.pt", weights_only=True)["model"]
    assert torch.equal(again["classifier.layer.weight"], weight)


def test_weights_that_are_0_are_told(smaller, capsys):
    smaller.stem.layer.weight.data.zero_()
    smaller.stage3[1].conv1.layer.weight.data.zero_()
    models.save("model.pt", smaller, models.Card("resnet20", [*"abcdefg"], 16, [127.0] * 3, [60.0] * 3))
    run_program(*SHORT, "--init", "model.pt", "--dry_run")
    said = capsys.readouterr().err
    assert re.search(r"\d+ of \d+ weights of 'model.pt' are 0; they learn again as the others do, unless they are cut", said)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--epochs", "0"], "--epochs 0: the classifier of 'model.pt' does not fit, and the new one would learn nothing"),
        (["--teacher", "model.pt", "--distill", "KD"], "--teacher: 'model.pt' tells 7 classes apart, and the student 3"),
        (["--teacher", "dense", "--distill", "KD"], "tells 7 classes apart, and the student 3"),
    ],
    ids=["no training", "teacher", "itself as teacher"],
)
def test_what_needs_the_old_classifier_is_refused(smaller, flags, words):
    with pytest.raises(Refused, match=words):
        run_program(*SHORT, "--init", "model.pt", *flags)
    assert [path.name for path in Path.cwd().iterdir()] == ["model.pt"]


def test_a_classifier_that_was_factorised_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = models.build("resnet20", classes=7)
    take_apart(network, "classifier", [2])
    models.save("model.pt", network, models.Card("resnet20", [*"abcdefg"], 16, [127.0] * 3, [60.0] * 3))
    with pytest.raises(Refused, match="it knows other classes, and 'classifier', which tells them apart, has been factorised"):
        run_program(*SHORT, "--init", "model.pt")


def test_such_a_run_is_cut_and_goes_on(smaller, tmp_path, monkeypatch):
    flags = [*TINY_DATA, "--epochs", "2", "--batch_size", "27", "--lr", "0.01", "--init", str(tmp_path / "model.pt")]
    (tmp_path / "runs").mkdir()
    trains_and_resumes(tmp_path / "runs", monkeypatch, *flags, "--prune_type", "structured", "--compact", network=None)
