"""These tests hold the noisy student to what it may read, and to the same end after a kill in any generation."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY_DATA, TwoBlocks, run_program
from promises import STEPS, differences, records, trains_and_resumes

import modeling
import models
import tasks
from models.joint import DropPath
from models.layers import Dropout
from settings.arguments import parse
from settings.errors import Failed, Refused
from training import student_actions
from training.evaluation import probabilities
from training.procedures.noisy_student import noisy_student

pytestmark = pytest.mark.core

LABELLED = ["--labelled", "0.4"]


def student(**options) -> list[str]:
    return ["--procedure", f"noisy_student({', '.join(f'{name}={value!r}' for name, value in options.items())})"]


class Dropping(TwoBlocks):
    """A small network that drops branches and numbers."""

    def __init__(self, classes: int = 3):
        super().__init__(classes=classes)
        self.a.drop_path, self.b.drop_path = DropPath(0.2), DropPath(0.4)
        self.b1.dropout = Dropout(0.1)


@pytest.fixture
def _small(monkeypatch):
    """Whatever the flags name, the network is a small one."""
    monkeypatch.setattr(models, "build", lambda _, classes=10, **__: Dropping(classes=classes))


def summary(folder: str) -> dict:
    return json.loads(Path(folder, "summary.json").read_text())


def test_the_plan_trains_a_teacher_and_then_students():
    settings = parse(["--layers", "20", "--epochs", "7", *student(generations=2), "--labelled", "0.1"])
    assert settings.data.augment == "randaugment"
    teacher, first, second, last = noisy_student(settings, generations=2)
    assert [stage.epochs for stage in (teacher, first, second, last)] == [7, 7, 7, 0]
    assert [stage.noise for stage in (teacher, first, second)] == [False, True, True]
    assert [stage.masks_stay for stage in (teacher, first, second)] == [True, True, False]
    assert parse(["--layers", "20", *student(), "--labelled", "0.1", "--augment", "crop"]).data.augment == "crop"
    zero = parse(["--layers", "20", *student(), "--labelled", "0.1", "--reg", "group_lasso"])
    assert [stage.reg for stage in noisy_student(zero, generations=2)] == ["none", "none", None, None]


@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_killed_in_a_generation_it_ends_alike(tmp_path, monkeypatch, at):
    flags = [*student(generations=2, ratio=2), *LABELLED]
    whole = trains_and_resumes(tmp_path, monkeypatch, *flags, network=Dropping, at=at)
    assert [row["stage"] for row in whole["rows"]] == [*["teacher"] * 2, *["generation 1"] * 2, *["generation 2"] * 2]
    assert ["pseudo_labels" in row["train"] for row in whole["rows"]] == [False] * 2 + [True] * 4
    run_program("--resume", "whole", "--quiet")  # it has ended: it says its end again


@pytest.mark.usefixtures("_small")
def test_what_a_generation_came_to_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_program(*STEPS, "--layers", "20", *student(generations=2), *LABELLED, "--out_dir", "run")
    told = summary("run")["generations"]
    assert [record["generation"] for record in told] == [0, 1, 2]
    rows = records("run")["rows"]
    assert [record["accuracy"] for record in told] == [rows[epoch]["valid"]["top1"] for epoch in (1, 3, 5)]
    taught = [record["taught"] for record in told[1:]]
    assert [record["teacher"] for record in taught] == [record["accuracy"] for record in told[:-1]]
    assert all(record["unlabelled"] == 33 and 0 <= record["correct"] <= 100 for record in taught)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("result generation")]
    assert [line.split(":")[0] for line in lines] == [f"result generation {number}" for number in range(3)]
    assert "33 unlabelled images passed" in lines[1]


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("procedure", [[], student(generations=1)])
def test_labels_of_unlabelled_images_are_never_read(tmp_path, monkeypatch, procedure):
    """With other labels the weights are the same, bit for bit."""
    monkeypatch.chdir(tmp_path)
    flags = [*STEPS, "--layers", "20", *procedure, *LABELLED]
    run_program(*flags, "--out_dir", "one")
    load = tasks.load

    def scrambled(*arguments, **options):
        task = load(*arguments, **options)
        task.unlabelled.true = torch.ones_like(task.unlabelled.true)
        return task

    monkeypatch.setattr(tasks, "load", scrambled)
    run_program(*flags, "--out_dir", "other")
    one, other = records("one"), records("other")
    for record in (*one["results"].get("generations", ()), *other["results"].get("generations", ())):
        record.get("taught", {}).pop("correct", None)
    assert differences(one, other) == []
    if procedure:
        assert summary("one")["generations"][1]["taught"]["correct"] != summary("other")["generations"][1]["taught"]["correct"]


@pytest.mark.usefixtures("_small")
def test_a_fraction_of_the_labels_alone_is_a_run_on_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = modeling.start(parse([*STEPS, "--layers", "20", *LABELLED]))
    assert (len(run.task.train), len(run.task.unlabelled), run.steps) == (21, 33, 1)
    assert run.task.batch == 21
    seen = {tuple(label.tolist()) for epoch in range(3) for _, label in run.batches(epoch)}
    assert all(sorted(labels) == sorted(run.task.train.labels.tolist()) for labels in seen)


def test_the_teacher_is_without_noise_and_labels_without_it():
    arch = ["--arch", "resnet20(dropout=0.5, drop_path=0.5)"]
    run = modeling.start(parse([*STEPS, *arch, *student(generations=1), *LABELLED]))
    quiet = next(run.batches(0))[0]
    assert torch.equal(quiet, next(run.task.batches(0, noise=False))[0])
    assert not torch.equal(quiet, next(run.task.batches(0))[0])
    modes = []
    run.model.get_submodule("classifier").dropout.register_forward_hook(lambda module, *_: modes.append(module.training))
    modeling.train_epoch(run, 0, modeling.tqdm(disable=True))
    assert modes == [False] * run.steps
    assert torch.equal(probabilities(run), probabilities(run))
    assert not run.model.training
    teacher = {name: value.clone() for name, value in run.model.state_dict().items()}
    said = probabilities(run)
    run.enter(1)
    assert torch.equal(run.task.unlabelled.pseudo.targets, said)
    assert not torch.equal(run.model.stem.weight, teacher["stem.layer.weight"])
    assert torch.equal(run.model.stem.norm.running_mean, torch.zeros(16))
    assert not run.optimizer.state


# what a teacher that is surer of some images than of others says
SAID = torch.randn(33, 3, generator=torch.Generator().manual_seed(2)).softmax(1)
OPTIONS = {
    "labels": ("soft", "hard"),
    "confidence": (0.0, 0.5),
    "balance": (True, False),
    "images_a_class": (2, 5),
    "ratio": (1, 3),
    "generations": (1, 2),
}


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_has_an_effect(tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(student_actions, "probabilities", lambda run: SAID)
    for number, value in enumerate(OPTIONS[option]):
        options = {"generations": 1} | {option: value}
        run_program(*STEPS, "--epochs", "1", "--layers", "20", *student(**options), *LABELLED, "--out_dir", str(number))
    one, other = (records(folder) for folder in "01")
    assert differences(one["model"], other["model"])


@pytest.mark.parametrize("cut", [["--prune_phase", "dynamic"], ["--prune_phase", "init", "--prune_imp", "SNIP"]])
def test_the_last_student_is_pruned(tmp_path, monkeypatch, cut):
    pruned = ["--prune_type", "structured", "--prune_rate", "0.3", *cut, "--compact"]
    flags = [*student(generations=2), *LABELLED, *pruned]
    whole = trains_and_resumes(tmp_path, monkeypatch, *flags, at=5, network=Dropping)
    cuts = [row["cut"] for row in whole["rows"]]
    assert cuts[:4] == [0] * 4
    assert cuts[4] > 0
    assert summary("whole")["left"]["filters"] < summary("whole")["dense"]["filters"]


def test_scales_of_the_last_student_are_learned(tmp_path, monkeypatch):
    flags = [*student(generations=1), *LABELLED, "--reg", "sss", "--odecay", "0.01"]
    whole = trains_and_resumes(tmp_path, monkeypatch, *flags, at=3)
    scales = {name: value for name, value in whole["model"].items() if name.endswith(".gate.scale")}
    assert scales
    assert any((value != 1).any() for value in scales.values())


def test_pictures_of_a_folder_are_learned_from(tmp_path, monkeypatch):
    pictures = Path(TINY_DATA[3]) / "test"
    (tmp_path / "pictures").symlink_to(pictures)
    flags = [*student(generations=1, ratio=1), "--unlabelled", "pictures"]
    whole = trains_and_resumes(tmp_path, monkeypatch, *flags, at=3)
    assert whole["results"]["generations"][1]["taught"]["unlabelled"] == 24
    monkeypatch.chdir("/")
    run_program("--resume", str(tmp_path / "whole"), "--quiet")  # the folder is found from elsewhere


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(
    ("change", "message"), [({}, "pseudo_labels has no 'images'"), ({"images": torch.tensor([99])}, "other unlabelled images")]
)
def test_a_checkpoint_without_its_pseudo_labels_is_refused(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    run_program(*STEPS, "--layers", "20", *student(generations=1), *LABELLED, "--out_dir", "run")
    state = torch.load("run/checkpoint.pt", weights_only=True)
    state["pseudo_labels"] = state["pseudo_labels"] | change if change else {}
    torch.save(state, "run/checkpoint.pt")
    with pytest.raises(Refused, match=message) as caught:
        run_program("--resume", "run", "--recalibrate", "1", "--quiet")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("_small")
def test_where_nobody_is_sure_it_ends(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [*STEPS, "--lr", "1e-6", "--layers", "20", *student(generations=1, confidence=0.9999), *LABELLED]
    with pytest.raises(Failed, match=r"generation 1: no unlabelled image has a confidence above 0\.9999"):
        run_program(*flags, "--out_dir", "run")
