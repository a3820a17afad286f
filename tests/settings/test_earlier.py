"""A command that takes a run uses that run's own data, and refuses other data where it measures the run's network."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torchvision.datasets.cifar
from conftest import ROOT, TINY, TINY_DATA, run_program

import modeling
import models
import sensitivity
from settings.arguments import parse
from settings.earlier import as_measured_on
from settings.errors import Refused
from settings.flags import SECTIONS

sys.path.insert(0, str(ROOT))
from benchmarks import criteria, images


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a dense run on small coloured pictures, a third of them held out."""
    folder = tmp_path_factory.mktemp("runs") / "dense"
    run_program(*TINY, "--val_size", "0.3", "--normalise", "half", "--quiet", "--out_dir", str(folder))
    return folder


def test_init_takes_the_data_of_the_run(run):
    then = json.loads((run / "config.json").read_text())["settings"]
    settings = parse(["--init", str(run)])
    assert {name: settings.flat[name] for name in SECTIONS["data"]} == {name: then[name] for name in SECTIONS["data"]}
    assert (settings.data.dataset, settings.data.val_size, settings.training.epochs) == ("folder", 0.3, 300)
    assert parse(["--init", str(run / "checkpoint.pt")]).data.data_dir == TINY_DATA[3]
    started = modeling.start(parse(["--init", str(run), "--device", "cpu"]))
    assert (len(started.task.train), len(started.task.valid)) == (42, 18)


def test_what_is_typed_or_a_recipe_says_is_kept(run):
    settings = parse(["--init", str(run), "--val_size", "0.1", "--recipe", "ksc2020"])
    assert (settings.data.val_size, settings.data.augment, settings.data.dataset) == (0.1, "crop", "folder")
    other = parse(["--init", str(run), "--dataset", "cifar10"])  # as its weights may be of use on other images
    assert (other.data.image_size, other.data.data_dir, other.data.val_size) == (32, "data", 0.1)


def test_a_file_by_itself_says_which_data_it_is_of(run, tmp_path):
    shutil.copy(run / "checkpoint.pt", tmp_path / "alone.pt")
    started = modeling.start(parse(["--init", str(tmp_path / "alone.pt"), "--data_dir", TINY_DATA[3], "--device", "cpu"]))
    assert (started.settings.data.dataset, started.settings.data.image_size) == ("folder", 16)
    assert started.settings.data.val_size == 0.3


def test_the_control_from_scratch_has_the_data_of_its_network(tmp_path):
    pruned = tmp_path / "pruned"
    run_program(*TINY, "--prune_type", "structured", "--compact", "--quiet", "--out_dir", str(pruned))
    assert parse(["--scratch", str(pruned / "model.pt")]).data.image_size == 16
    shutil.copy(pruned / "model.pt", tmp_path / "alone.pt")
    started = modeling.start(parse(["--scratch", str(tmp_path / "alone.pt"), "--device", "cpu"]))
    assert started.settings.data.data_dir == TINY_DATA[3]
    assert models.load(tmp_path / "alone.pt").card.training["settings"]["dataset"] == "folder"


def test_a_scan_is_on_the_images_of_the_run(run, capsys):
    sensitivity.main([str(run), "--rates", "0.5", "--device", "cpu"])
    out = capsys.readouterr().out
    valid = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["valid"]
    assert valid["images"] == 18
    assert f"Accuracy {valid['top1']:.2f} % with all filters" in out
    settings = sensitivity.read([str(run)])[1]
    assert (settings.training.batch_size, settings.run.seed) == (18, 0)
    assert sensitivity.read([str(run), "--seed", "3"])[1].run.seed == 3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--dataset", "cifar10"], "--dataset cifar10 contradicts the run in '{run}', which has folder"),
        (["--image_size", "32"], "--image_size 32 contradicts the run in '{run}', which has 16"),
    ],
)
def test_other_data_is_refused_where_the_network_is_measured(run, tmp_path, flags, words):
    for command in (sensitivity.main, images.main, criteria.main):
        extra = ["--out", str(tmp_path / "out"), "--criteria", "L1"] if command is criteria.main else []
        with pytest.raises(Refused) as caught:
            command([str(run), *flags, *extra])
        assert str(caught.value) == words.replace("{run}", str(run))
    moved = ["--data_dir", str(Path(TINY_DATA[3]))]
    assert as_measured_on(parse(["--init", str(run), *moved]), str(run)).data.image_size == 16


def test_evaluation_has_the_data_of_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_program(*TINY, "--prune_type", "structured", "--compact", "--quiet", "--out_dir", "run")
    capsys.readouterr()
    run_program("--evaluate", "run/model.pt", "--device", "cpu", "--quiet")
    assert "(24 images)" in capsys.readouterr().out

    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", no_network)
    with pytest.raises(Refused, match="no usable cifar10 in 'data'"):  # another data set is not where the file's pictures are
        run_program("--evaluate", "run/model.pt", "--dataset", "cifar10", "--quiet")


def test_what_is_taken_over_is_said(run, capsys):
    run_program("--init", str(run), "--batch_size", "18", "--device", "cpu", "--dry_run", "--val_size", "0.2")
    assert f"data as in '{run}': --dataset folder --data_dir {TINY_DATA[3]} --image_size 16 --normalise half\n" in (
        capsys.readouterr().err
    )
    run_program(*TINY, "--dry_run")
    assert "data as in" not in capsys.readouterr().err
