"""The two stages of FitNets: a hint for the first layers alone, and then the task with the other losses."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY, run_program

import modeling
from settings.arguments import parse
from settings.errors import Refused

FITNETS = ["--procedure", "fitnets(hint=0.5)", "--epochs", "2", "--quiet", "--amp", "off", "--deterministic", "--lr", "0.05"]


@pytest.fixture
def teacher(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_program(*TINY, "--seed", "7", "--quiet", "--out_dir", "teacher")
    return ["--teacher", "teacher"]


def weights(file: str) -> dict[str, torch.Tensor]:
    state = torch.load(file, weights_only=True)["model"]
    return {name: value for name, value in state.items() if "running" not in name and "num_batches" not in name}


def test_the_hint_trains_what_is_before_it_and_nothing_else(teacher):
    flags = [*TINY, *FITNETS, *teacher, "--distill", "FitNet(stage=2) + KD(temperature=3.0)"]
    fresh = {name: value.clone() for name, value in modeling.start(parse(flags)).model.named_parameters()}
    run_program(*flags, "--out_dir", "run")
    guided, taught = weights("run/previous.pt"), weights("run/checkpoint.pt")
    for name, value in fresh.items():
        behind = name.startswith(("stage3", "classifier"))
        assert torch.equal(guided[name], value) == behind, name
        assert not torch.equal(taught[name], guided[name]), name
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["hint", "teaching"]
    terms = [{"FitNet", "KD", "cross_entropy"} & row["train"].keys() for row in rows]
    assert terms[0] <= {"FitNet"}
    assert terms[1] == {"KD", "cross_entropy"}


def test_behind_the_hint_the_loss_is_that_of_the_other_losses(teacher):
    """With its share of the task's terms, as in a run that has these losses alone."""
    run = modeling.start(parse([*TINY, *FITNETS, *teacher, "--distill", "FitNet + KD(weight=0.7)"]))
    alone = modeling.start(parse([*TINY, *FITNETS[2:], *teacher, "--distill", "KD(weight=0.7)"]))
    inputs, targets = next(iter(alone.batches(0)))
    hint = run.losses(inputs, targets)[1]
    assert hint.keys() == {"FitNet"}
    run.enter(1)
    for network in (run.model, alone.model):
        network.load_state_dict(alone.model.state_dict())
        network.eval()
    mine, wanted = (each.losses(inputs, targets)[1] for each in (run, alone))
    assert mine.keys() == wanted.keys() == {"cross_entropy", "KD"}
    for name, value in wanted.items():
        torch.testing.assert_close(mine[name], value)


def test_without_another_loss_the_second_stage_is_plain_training(teacher):
    run_program(*TINY, *FITNETS, *teacher, "--distill", "FitNet", "--out_dir", "run")
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert "FitNet" not in rows[1]["train"]


def test_what_cannot_be_is_refused_in_one_line(teacher):
    for flags, words in (
        ([], "it needs --teacher and --distill"),
        ([*teacher, "--distill", "KD"], "begins by a hint of the teacher"),
        ([*teacher, "--distill", "FitNet", "--prune_type", "structured"], "prunes nothing: begin with a smaller network"),
        ([*teacher, "--distill", "FitNet", "--procedure", "fitnets(hint=0.1)"], "leave none for one of its two stages"),
    ):  # fmt: skip
        with pytest.raises(Refused, match=words) as caught:
            run_program(*TINY, *FITNETS, *flags, "--out_dir", "other")
        assert "\n" not in str(caught.value)
        assert not Path("other").exists()
