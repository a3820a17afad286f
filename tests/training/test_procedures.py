"""These tests hold procedures to the papers that they come from: how long they train, with what, and what they take out."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import TINY_DATA, run_program
from promises import PRUNED, STEPS, trains_and_resumes

import modeling
from models import files
from settings.arguments import parse
from settings.errors import Refused
from settings.registry import LEARNING_RATES
from training.procedures.multilayer import multilayer
from training.procedures.scratch import scratch

pytestmark = pytest.mark.core

# many weights of a fresh network are below this threshold, so that something goes in every round
SPARSE = "zero_fraction(counts='multilayer', threshold=0.05, own=0.5, own_at_least=0.4)"


@pytest.fixture
def half(tmp_path, monkeypatch):
    """The folder of a pruned run, whose filters have been taken out."""
    monkeypatch.chdir(tmp_path)
    run_program(*STEPS, "--layers", "20", "--epochs", "1", *PRUNED, "--compact", "--out_dir", "half")
    return Path("half")


def drops(stage, epochs: int, schedule: str) -> list[int]:
    """The epochs at whose begin the learning rate falls."""
    rates = [stage.learning_rate(epoch, 10, LEARNING_RATES.get(schedule)) for epoch in range(epochs)]
    return [epoch for epoch in range(1, epochs) if rates[epoch] < rates[epoch - 1]]


@pytest.mark.parametrize(
    ("epochs", "times", "cap", "schedule", "wanted", "milestones"),
    [
        (160, 200 / 80, 0.0, "step", 400, [200, 300]),
        (90, 200 / 80, 2.0, "step(drops=(1/3, 2/3))", 180, [60, 120]),
        (90, 1.5, 2.0, "step(drops=(1/3, 2/3))", 135, [45, 90]),
        (160, 1.0, 0.0, "step", 160, [80, 120]),
        (100, 1.07, 0.0, "step", 107, [54, 81]),  # 100 x 1.07 is 107.00000000000001 in floats, 53.5 the half of it
    ],
)
def test_equal_compute_stretches_the_schedule(epochs, times, cap, schedule, wanted, milestones):
    """The numbers of the paper's code: CIFAR at 50 % and 75 %, ImageNet at every third and at most twice as long."""
    schedule = schedule.replace("1/3", str(1 / 3)).replace("2/3", str(2 / 3))
    (stage,) = scratch(parse(["--epochs", str(epochs)]), of="m.pt", budget="B", times=times, cap=cap)
    assert stage.epochs == wanted
    assert drops(stage, wanted, schedule) == milestones
    (equal,) = scratch(parse(["--epochs", str(epochs)]), of="m.pt")
    assert equal.epochs == epochs


@pytest.mark.parametrize("of", ["half/model.pt", "half"])
def test_equal_compute_goes_on_without_the_file(half, tmp_path, monkeypatch, of):
    summary = json.loads((half / "summary.json").read_text())
    times = summary["dense"]["macs"] / summary["left"]["macs"]
    trains_and_resumes(tmp_path, monkeypatch, "--procedure", f"scratch(of={of!r}, budget='B')", network=None)
    assert len(Path("whole/metrics.jsonl").read_text().splitlines()) == int(2 * times) > 2
    asked = json.loads(Path("whole/config.json").read_text())["settings"]["procedure"]
    assert asked == f"scratch(of={of!r}, budget='B', times={times!r})"
    left = json.loads(Path("whole/summary.json").read_text())["left"]
    assert left == summary["left"]
    shutil.rmtree(half)
    run_program("--resume", "whole", "--epochs", "3", "--quiet")
    assert len(Path("whole/metrics.jsonl").read_text().splitlines()) == int(3 * times)


def test_an_option_that_was_renamed_is_read(half):
    """Runs that began when `of` was `model` go on."""
    run_program(*STEPS, "--procedure", "scratch(of='half/model.pt')", "--out_dir", "run")
    text = Path("run/config.json").read_text()
    Path("run/config.json").write_text(text.replace("scratch(of=", "scratch(model="))
    assert "scratch(model=" in Path("run/config.json").read_text()
    run_program("--resume", "run", "--epochs", "3", "--quiet")
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 3


def test_a_round_trains_with_the_penalty_and_then_without():
    settings = parse(["--layers", "20", "--procedure", "multilayer(rounds=3)", "--epochs", "10"])
    assert (settings.pruning.prune_type, settings.training.reg, settings.training.odecay) == ("structured", "l1", 1e-5)
    stages = multilayer(settings, rounds=3)
    assert [stage.epochs for stage in stages] == [1, 2, 1, 2, 2, 2]
    assert [stage.reg for stage in stages] == ["l1", "none"] * 3
    assert [stage.enter for stage in stages] == [(), ("select(held_out=True)", "remove")] * 3
    tiny = [*TINY_DATA, "--layers", "20", "--batch_size", "18", "--procedure", "multilayer(rounds=1)", "--prune_imp", SPARSE]
    run = modeling.start(parse([*tiny, "--epochs", "2"]))
    assert [*run.penalties] == ["l1"]
    run.enter(1)
    assert [*run.penalties] == []


@pytest.mark.parametrize("at", [1, 3, 4])
def test_rounds_take_out_more_and_more(tmp_path, monkeypatch, at):
    """A run that is killed before, between and behind later removals ends in the same bits."""
    flags = ["--layers", "20", "--epochs", "6", "--procedure", "multilayer(rounds=3)", "--prune_imp", SPARSE, "--compact"]
    whole = trains_and_resumes(tmp_path, monkeypatch, *flags, network=None, at=at)
    cut = [row["cut"] for row in whole["rows"]]
    assert cut[0] == 0 < cut[1] == cut[2] <= cut[3] == cut[4] <= cut[5]
    selections = json.loads(Path("whole/summary.json").read_text())["selections"]
    assert [record["stage"] for record in selections] == [f"round {number}, retraining" for number in (1, 2, 3)]
    left = [record["macs_left"] for record in selections]
    assert 1 > left[0] >= left[1] >= left[2]
    assert left == [whole["rows"][epoch]["macs_left"] for epoch in (1, 3, 5)]
    smaller = files.load("whole/model.pt")
    assert sum(unit.filters for unit in smaller.units.values()) == sum(whole["rows"][-1]["kept_filters"].values())


def test_a_round_that_takes_nothing_out_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    criterion = "zero_fraction(counts='multilayer', threshold=1e-9)"
    flags = ["--layers", "20", "--procedure", "multilayer(rounds=1)", "--prune_imp", criterion, "--epochs", "2"]
    run_program(*STEPS, *flags, "--out_dir", "run")
    run_program("--resume", "run", "--recalibrate", "1")
    assert json.loads(Path("run/summary.json").read_text())["recalibration"]["batches"] == 1


@pytest.mark.parametrize("factor", [0.0, 1.0])
def test_a_network_at_chance_warns(tmp_path, monkeypatch, capsys, factor):
    """Where all weights at 0 cost nothing, no threshold can be found; where they cost something nothing is said."""
    from pruning.context import Context

    monkeypatch.chdir(tmp_path)
    # the accuracy is the fraction of weights that are not 0, or always the same
    monkeypatch.setattr(Context, "measure", lambda context: (0.0, 0.3 + factor * share_left(context.network)))
    flags = ["--layers", "20", "--procedure", "multilayer(rounds=1)", "--epochs", "2"]
    run_program(*STEPS[:-1], *flags, "--out_dir", "run")
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("WARNING")]
    record = json.loads(Path("run/summary.json").read_text())["selections"][0]
    assert record["nothing_lost"] == (factor == 0)
    assert len(warned) == (factor == 0)
    assert all("no better than with all of these weights at 0" in line for line in warned)


def share_left(network) -> float:
    weights = [unit.weight.detach() for unit in network.units.values()]
    return sum(int((weight != 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def test_stages_are_as_wide_as_in_pruned_runs(half, tmp_path, monkeypatch):
    """A run's folder and its model.pt say the same widths; another depth has them in each of its blocks, and resumes."""
    run_program(*STEPS, "--layers", "20", "--epochs", "1", *PRUNED, "--seed", "1", "--out_dir", "masked")
    flags = ["--layers", "32", "--widths", "half/model.pt", "masked"]
    whole = trains_and_resumes(tmp_path, monkeypatch, *flags, network=None)
    kept = [json.loads(Path(run, "metrics.jsonl").read_text())["kept_filters"] for run in ("half", "masked")]
    for stage, full in (("stage1", 16), ("stage2", 32), ("stage3", 64)):
        layers = [counts[f"{stage}.{block}.conv1"] for counts in kept for block in range(3)]
        wanted = int(sum(layers) / len(layers) + 0.5)
        widths = {value.shape[0] for name, value in whole["model"].items() if name.startswith(stage) and "conv1.layer" in name}
        assert widths == {wanted} != {full}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--procedure", "scratch(of='dense')"], "'dense' is a whole resnet20: no filter has been taken out of it"),
        (["--layers", "20", "--widths", "dense"], "no filter has been cut from 'dense'"),
        (["--arch", "vgg16", "--image_size", "32", "--widths", "half"], "5 sizes of maps, 0 of them"),
        (["--layers", "20", "--procedure", "multilayer(rounds=0)"], "at least 1"),
        (["--layers", "20", "--procedure", "multilayer"], "2 epochs leave none"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(half, flags, message):
    run_program(*STEPS, "--layers", "20", "--epochs", "1", "--out_dir", "dense")
    with pytest.raises(Refused, match=message) as caught:
        run_program(*STEPS, *flags, "--out_dir", "run")
    assert "\n" not in str(caught.value)
    assert not Path("run").exists()
