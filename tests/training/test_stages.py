"""These tests are about the plan of a run: its stages, their learning rates, and checkpoints from before there were any."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY, run_program

from models import load
from settings.arguments import parse
from settings.errors import Refused
from settings.registry import PROCEDURES
from training.experiment import start
from training.stages import Plan, Stage, plan_of

PRUNED = ["--prune_type", "structured", "--prune_rate", "0.5"]


def names(*flags):
    return [(stage.name, stage.epochs, stage.enter) for stage in plan_of(parse(list(flags))).stages]


def test_the_plain_procedure_trains_once_and_does_afterwards_what_was_asked():
    assert names("--epochs", "7") == [("training", 7, ())]
    assert names("--recalibrate", "3") == [("training", 300, ()), ("fine-tuning", 0, ("recalibrate(batches=3)",))]
    both = names(*PRUNED, "--compact", "--recalibrate", "3", "--finetune_epochs", "2")
    assert both[1] == ("fine-tuning", 2, ("recalibrate(batches=3)", "remove"))


def test_scratch_is_a_procedure(tmp_path):
    (tmp_path / "m.pt").touch()
    model = str(tmp_path / "m.pt")
    wanted = [("from scratch", 300, (f"shrink(of={model!r})",))]
    assert names("--scratch", model) == names("--procedure", f"scratch(of={model!r})") == wanted


def test_what_is_asked_for_the_end_follows_any_procedure(tmp_path):
    (tmp_path / "m.pt").touch()
    scratch = names("--scratch", str(tmp_path / "m.pt"), "--recalibrate", "3")
    assert scratch[1:] == names("--recalibrate", "3")[1:] == [("fine-tuning", 0, ("recalibrate(batches=3)",))]


@pytest.mark.parametrize(("stages", "why"), [
    ([Stage("first", 1, 0.1), Stage("second", 1, 0.1, enter=("remoev",))], "stage second: unknown action 'remoev'"),
    ([Stage("first", 1, 0.1, enter=("recalibrate(batches='3')",))], "stage first: option 'batches'"),
    ([Stage("first", 0, 0.1)], "trains for no epoch"),
])  # fmt: skip
def test_a_plan_that_cannot_be_carried_out_is_refused_at_the_start(stages, why, monkeypatch):
    monkeypatch.setattr(PROCEDURES, "get", lambda _: lambda settings: stages)
    with pytest.raises(Refused, match=why):
        plan_of(parse([]))


def test_stages_before_the_present_one_may_not_grow(tmp_path, monkeypatch):
    def two(settings):
        return [Stage("first", settings.training.epochs, 0.1), Stage("second", 1, 0.1)]

    monkeypatch.setattr(PROCEDURES, "get", lambda _: two)
    monkeypatch.chdir(tmp_path)
    run_program(*TINY, "--epochs", "1", "--out_dir", "run", "--quiet")
    state = torch.load("run/checkpoint.pt", weights_only=True)
    assert (state["stage"], len(state["rows"])) == (1, 2)
    with pytest.raises(Refused, match="second has begun after 2 epochs, and would now begin after 3"):
        start(parse([*TINY, "--epochs", "3"]), state=state)


def test_the_learning_rate_of_a_stage_goes_through_its_part_of_the_schedule():
    def half(progress):
        return 1 - progress / 2

    stage = Stage("second", 4, 0.1, progress=(0.5, 1.0))
    assert [stage.learning_rate(done, 10, half) for done in (0, 2, 4)] == pytest.approx([0.075, 0.0625, 0.05])
    warm = Stage("first", 4, 0.1, warmup_epochs=2)
    assert warm.learning_rate(0, 10, lambda _: 1) == pytest.approx(0.1 * 0.05)
    assert warm.learning_rate(2, 10, lambda _: 1) == pytest.approx(0.1)


def test_epochs_are_counted_through_the_plan():
    plan = Plan([Stage("a", 3, 1.0), Stage("b", 0, 1.0), Stage("c", 2, 1.0)])
    assert [plan.first_epoch(number) for number in range(3)] == [0, 3, 3]
    plan.check_progress(2, 5)
    with pytest.raises(Refused, match="3 epochs of c are done already"):
        plan.check_progress(2, 6)
    with pytest.raises(Refused, match="further than the plan"):
        plan.check_progress(3, 6)


def test_a_dry_run_tells_the_whole_plan(capsys):
    run_program(*TINY, *PRUNED, "--epochs", "30", "--compact", "--finetune_epochs", "4", "--dry_run")
    said = capsys.readouterr().err
    assert "stage training: 30 epochs at learning rate 0.2" in said
    assert "stage fine-tuning: remove, then 4 epochs at learning rate 0.002" in said


def test_the_plan_is_recorded_and_rows_say_their_stage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_program(*TINY, *PRUNED, "--compact", "--finetune_epochs", "1", "--out_dir", "run", "--quiet")
    config = json.loads(Path("run/config.json").read_text())
    assert [stage["name"] for stage in config["plan"]] == ["training", "fine-tuning"]
    assert config["metric"] == "top1"
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["training", "training", "fine-tuning"]


def as_format_1(path: Path) -> None:
    """Rewrite a checkpoint as it was before runs had stages: what followed the last mask stood in `after`."""
    state = torch.load(path, weights_only=True)
    stage, shapes = state.pop("stage"), state.pop("shapes")
    fixed, results = state.pop("fixed"), state.pop("results")
    state["after"] = {**fixed, **results, "shapes": shapes} if stage else None
    state["scratch"] = None if stage else shapes
    del state["settings"]["flags"]
    torch.save({**state, "format": 1}, path)


@pytest.mark.parametrize("where", ["training", "fine-tuning", "from scratch"])
def test_checkpoints_of_format_1_go_on_to_the_same_end(where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ending = ["--compact", "--recalibrate", "1", "--finetune_epochs", "2"] if where == "fine-tuning" else []
    flags = [*TINY, *PRUNED, *ending, "--quiet"]
    if where == "from scratch":
        run_program(*TINY, *PRUNED, "--epochs", "1", "--compact", "--out_dir", "small", "--quiet")
        flags = [*TINY[: TINY.index("--layers")], "--epochs", "2", "--batch_size", "18", "--scratch", "small/model.pt", "--quiet"]
    run_program(*flags, "--out_dir", "whole")
    wanted = torch.load("whole/checkpoint.pt", weights_only=True)
    # the run before its last epoch
    shutil.copytree("whole", "old")
    Path("old/summary.json").unlink()
    Path("old/previous.pt").replace("old/checkpoint.pt")
    as_format_1(Path("old/checkpoint.pt"))
    config = json.loads(Path("old/config.json").read_text())
    for name in ("flags", "procedure", "optimizer", "channels"):
        del config["settings"][name]
    Path("old/config.json").write_text(json.dumps(config))
    run_program("--resume", "old", "--quiet")
    got = torch.load("old/checkpoint.pt", weights_only=True)
    assert len(got["rows"]) == len(wanted["rows"])
    for name, value in wanted["model"].items():
        assert torch.equal(value, got["model"][name]), name
    if where == "fine-tuning":
        assert load("old/model.pt").shapes() == load("whole/model.pt").shapes()
        assert json.loads(Path("old/summary.json").read_text())["recalibration"]["batches"] == 1
