"""These tests hold students of other networks than their teacher's to one record, and to the same end after a kill."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY_DATA, TwoBlocks, narrow, run_program
from promises import PRUNED, STEPS, differences, records

import modeling
import models
import report
from models.joint import DropPath
from pruning import accounting
from runs.records import read_run
from settings.arguments import parse
from settings.errors import Refused
from training.earlier_networks import read_network
from training.starting import starting_weights

pytestmark = pytest.mark.core

LABELLED = ["--labelled", "0.4", "--val_size", "0.2"]
SIZES = {"resnet20": (6, 5), "resnet32": (8, 7), "resnet44": (10, 4)}  # channels of the stream, and within blocks
BUILD = models.build


def student(names: str = "", generations: int = 1, epochs: str = "1") -> list[str]:
    called = f"noisy_student(generations={generations}, ratio=1{f', student={names!r}' if names else ''})"
    return ["--procedure", called, *LABELLED, "--epochs", epochs]


class Sized(TwoBlocks):
    """A small network of another size for each name, which drops branches."""

    def __init__(self, name: str, classes: int):
        super().__init__(*SIZES[name.partition("(")[0]], classes=classes)
        self.a.drop_path = DropPath(0.2)


@pytest.fixture
def _sized(monkeypatch):
    """Small networks in place of the ResNets."""

    def build(name, **options):
        return Sized(name, options.get("classes", 10)) if name.partition("(")[0] in SIZES else BUILD(name, **options)

    monkeypatch.setattr(models, "build", build)


@pytest.fixture
def _narrow(monkeypatch):
    """Networks by their names, with an eighth of the filters; files of them are not read."""
    monkeypatch.setattr(models, "build", lambda name, **options: narrow(BUILD(name, **options)))


def copied_before(monkeypatch, *epochs: int) -> None:
    """Let a run be copied before each of these epochs, as a kill there would leave it."""
    train = modeling.train_epoch

    def copies(run, epoch, bar):
        if epoch in epochs and not Path(f"part{epoch}").exists():
            shutil.copytree("whole", f"part{epoch}")
        return train(run, epoch, bar)

    monkeypatch.setattr(modeling, "train_epoch", copies)


@pytest.mark.usefixtures("_sized")
def test_killed_in_any_generation_it_ends_alike(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copied_before(monkeypatch, 0, 1, 3, 4, 5)
    flags = [
        *student("resnet32, resnet44(drop_path=0.1)", 2, "2"),
        *PRUNED,
        "--ema",
        "0.9",
        "--finetune_epochs",
        "1",
        "--compact",
    ]
    monkeypatch.setattr(modeling.measure, "timed", lambda *_: [])
    run_program(*STEPS, "--layers", "20", *flags, "--out_dir", "whole")
    whole = records("whole")
    for epoch in (0, 1, 3, 4, 5):
        run_program("--resume", f"part{epoch}", "--quiet")
        assert differences(whole, records(f"part{epoch}")) == []
    assert whole["arch"] == "resnet44(drop_path=0.1)"
    generations = whole["results"]["generations"]
    assert [record["network"] for record in generations] == ["resnet20", "resnet32", "resnet44(drop_path=0.1)"]
    # what is told of pruning is of the last network throughout, of which at first nothing is cut
    last = Sized("resnet44", 3)
    totals = {name: unit.filters for name, unit in last.units.items()}
    assert [row["cut"] > 0 for row in whole["rows"]] == [False] * 4 + [True] * 3
    assert all(row["kept_filters"] == totals for row in whole["rows"][:4])
    assert {row["num_total"] for row in whole["rows"][:6]} == {accounting.dense(last, 16).parameters}
    config, summary = (json.loads(Path("whole", f"{name}.json").read_text()) for name in ("config", "summary"))
    assert config["filters"] == totals
    assert summary["dense"]["macs"] == accounting.dense(last, 16).macs
    assert 0 < summary["left"]["filters"] < summary["dense"]["filters"] == sum(totals.values())
    assert summary["architecture"] is None
    run_program("--resume", "whole", "--quiet")  # it has ended: it says its end again


@pytest.mark.usefixtures("_sized")
def test_the_teachers_own_network_by_name_is_as_without(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arch = ["--arch", "resnet20(drop_path=0.1)"]
    run_program(*STEPS, *arch, *student(), "--out_dir", "without")
    run_program(*STEPS, *arch, *student("resnet20(drop_path=0.1)"), "--out_dir", "named")
    run_program(*STEPS, *arch, *student("resnet20"), "--out_dir", "rebuilt")  # which is built anew
    run_program(*STEPS, *arch, *student("resnet32"), "--out_dir", "other")
    without = records("without")
    for name in ("named", "rebuilt"):
        found = records(name)
        assert differences(without["rows"], found["rows"]) == []
        assert differences(without["model"], found["model"]) == []
    other = records("other")
    assert differences(without["rows"][0], other["rows"][0]) == []  # what comes does not change what the teacher learns
    assert without["model"]["stem.layer.weight"].shape != other["model"]["stem.layer.weight"].shape


def test_what_reads_the_run_reads_the_students_network(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = [*STEPS, "--arch", "lenet300", *student("lenet5(dropout=0.1)")]
    run_program(*flags, "--out_dir", "run")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("result generation")] == [
        "result generation 0, a lenet300",
        "result generation 1, a lenet5(dropout=0.1)",
    ]
    network = models.load("run/model.pt")
    assert network.card.arch == "lenet5(dropout=0.1)"
    parameters = sum(value.numel() for value in network.parameters())
    assert read_run(Path("run")).summary["dense"]["parameters"] == parameters
    for path in ("run", "run/checkpoint.pt"):
        read, _, known = read_network(path)
        assert sum(value.numel() for value in read.parameters()) == parameters
        assert known.settings["arch" if path != "run" else "epochs"]
        settings = parse(["--init", path, "--lr", "0.1", "--data_dir", "x"])
        assert starting_weights(settings)[0] == "lenet5(dropout=0.1)"
    run_program("--evaluate", "run/checkpoint.pt", "--device", "cpu")
    assert read_run(Path("run")).arch == "lenet5(dropout=0.1)"  # whose accuracy it is
    assert report.main(["run", "--no_plots"]) == 0


@pytest.mark.usefixtures("_narrow")
def test_an_unfinished_run_of_another_network_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    copied_before(monkeypatch, 1)
    flags = [*student("resnet32"), *PRUNED]
    run_program(*STEPS, "--layers", "20", *flags, "--out_dir", "whole")
    capsys.readouterr()
    assert report.main(["part1", "whole", "--plots", "plots"]) == 0
    assert "part1 (unfinished: 1 of 2)" in capsys.readouterr().out
    assert report.main(["part1", "whole", "--layers", "--no_plots"]) == 0


OWN = """
import torch
def build(classes=10, channels=3, size=32):
    return torch.nn.Sequential(torch.nn.Conv2d(channels, 6, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
                               torch.nn.Flatten(), torch.nn.Linear(6, classes))
"""


@pytest.mark.usefixtures("_narrow")
def test_a_student_in_a_file_of_the_users(tmp_path, monkeypatch):
    """The file is executed as the run begins, and not where it goes on."""
    monkeypatch.chdir(tmp_path)
    Path("mynet.py").write_text(OWN)
    copied_before(monkeypatch, 0, 1)
    run_program(*STEPS, "--layers", "20", *student("mynet.py:build"), "--out_dir", "whole")
    Path("mynet.py").unlink()
    whole = records("whole")
    for epoch in (0, 1):
        run_program("--resume", f"part{epoch}", "--quiet")
        assert differences(whole, records(f"part{epoch}")) == []
    assert models.load("whole/model.pt").card.arch == "mynet.py:build"


@pytest.mark.usefixtures("_sized")
def test_the_last_students_network_alone_is_asked_about_pruning(tmp_path, monkeypatch):
    """That a network cannot be cut so far is said before the data is read; the teacher need not be one that can."""
    monkeypatch.chdir(tmp_path)
    narrow_one = {"resnet32": (2, 1)}
    monkeypatch.setattr(f"{__name__}.SIZES", SIZES | narrow_one)
    cut = [*STEPS, "--prune_type", "structured", "--target_macs", "0.2", "--prune_phase", "init"]
    with pytest.raises(Refused, match=r"noisy_student, student resnet32: --target_macs: 0.2 of the macs is less than") as caught:
        run_program(*cut, "--arch", "resnet20", *student("resnet32"), "--out_dir", "refused")
    assert "\n" not in str(caught.value)
    run_program(*cut, "--arch", "resnet32", *student("resnet20"), "--out_dir", "run")
    assert json.loads(Path("run", "summary.json").read_text())["left"]["macs"] > 0


@pytest.mark.usefixtures("_sized")
def test_a_teacher_of_all_must_fit_every_student(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_program(*STEPS, "--layers", "20", "--epochs", "1", "--out_dir", "teacher")
    taught = [*STEPS, "--layers", "20", "--teacher", "teacher/checkpoint.pt", "--distill", "AT"]
    run_program(*taught, *student("resnet32"), "--out_dir", "run")
    assert "AT" in records("run")["rows"][-1]["train"]
    with pytest.raises(Refused, match=r"noisy_student, student lenet300: the student has no feature maps"):
        run_program(*taught, *student("lenet300"), "--out_dir", "refused")
    assert not Path("refused").exists()


@pytest.mark.usefixtures("_sized")
def test_a_checkpoint_of_another_network_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_program(*STEPS, "--layers", "20", *student("resnet32"), "--out_dir", "run")
    state = torch.load("run/checkpoint.pt", weights_only=True)
    torch.save(state | {"arch": "resnet20"}, "run/checkpoint.pt")
    with pytest.raises(Refused, match="of a resnet20, and the run trains a resnet32 there"):
        run_program("--resume", "run", "--recalibrate", "1", "--quiet")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (student("resnet33"), "noisy_student, student: unknown network 'resnet33': did you mean 'resnet"),
        (student("resnet32(deep=1)"), "student: network 'resnet32' has no option 'deep'"),
        (student("resnet32("), "student: cannot read 'resnet32[(]': write name"),
        (student("resnet32 + resnet44"), "student: cannot read 'resnet32 [+] resnet44'"),
        (student("resnet32(classes=4)"), "student resnet32[(]classes=4[)]: the data set says how many classes there are"),
        (student("ssd300_vgg16"), "student: ssd300_vgg16 is for detection"),
        (student("mynet.py:build"), "student: no Python file at 'mynet.py'"),
        (student("resnet32, resnet44"), "student names 2 networks, and there are 1 generations"),
        (
            [*student("resnet32"), *PRUNED, "--prune_phase", "after", "--teacher", "dense"],
            "--teacher dense is the network itself before it is cut, and the students of --procedure noisy_student are other",
        ),
    ],
)
def test_a_student_that_cannot_be_is_refused_in_one_line(tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match=message) as caught:
        run_program(*TINY_DATA, "--layers", "20", *flags, "--out_dir", "run")
    assert "\n" not in str(caught.value)
    assert not Path("run").exists()


def test_the_plan_names_the_students():
    settings = parse(["--layers", "20", "--procedure", "noisy_student(student='resnet32, resnet44')", "--labelled", "0.1"])
    stages = modeling.plan_of(settings).stages
    said = [text.rpartition("student=")[2].rstrip(")") for stage in stages for text in stage.enter if "student=" in text]
    assert said == ["'resnet32'", "'resnet44'", "'resnet44'"]
