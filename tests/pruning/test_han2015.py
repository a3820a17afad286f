"""These tests are about the recipe of Han et al., 2015: its rounds, its learning rate, and dropout that follows the cut."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY_DATA, narrow, run_program
from promises import trains_and_resumes, unchanged

import modeling
import models
from models.layers import Dropout
from models.shapes import check_values
from pruning import Pruner
from pruning.dropout import dropout_rates, scale_dropout
from settings.arguments import parse
from settings.errors import Refused
from settings.registry import NETWORKS
from settings.schema import Unfit
from training.statistics import recalibrate_statistics

SMALL = [*TINY_DATA, "--batch_size", "18", "--quiet"]


def lenet(**options):
    return narrow(NETWORKS.get("lenet5(dropout=0.5)")(**{"size": 16, **options}))


@pytest.mark.core
def test_a_quarter_of_the_connections_halves_the_dropout():
    """The paper's D_r = D_o * sqrt(C_r / C_o): .5 at a quarter, as is .25."""
    network = lenet()
    hidden = network.linear[0]
    scale_dropout(network)
    assert float(hidden.dropout.rate) == 0.5
    pruner = Pruner(network, prune_type="unstructured", scope="local", rate=0.75)
    for rate, wanted in ((0.75, 0.25), (0.5, 0.5 * math.sqrt(0.5)), (0.0, 0.5)):
        pruner.update(rate)
        scale_dropout(network)
        assert float(hidden.dropout.rate) == pytest.approx(wanted, abs=1e-3 if hidden.weight.numel() % 4 else 1e-7)
    assert dropout_rates(network) == {"linear.0": {"original": 0.5, "rate": 0.5}}
    assert dropout_rates(models.build("lenet5")) == {}


@pytest.mark.core
def test_dropout_is_that_of_its_definition():
    dropout, ones = Dropout(0.5), torch.ones(100_000)
    dropout.rate.fill_(0.2)
    out = dropout(ones)
    assert {*out.tolist()} == {0.0, 1.25}
    assert (out == 0).float().mean().item() == pytest.approx(0.2, abs=0.005)
    assert dropout(ones.bfloat16()).dtype == torch.bfloat16
    x = ones.clone().requires_grad_(True)
    out = dropout(x)
    assert torch.equal(torch.autograd.grad(out.sum(), x)[0], out.detach())
    assert torch.equal(dropout.eval()(ones), ones)


@pytest.mark.core
def test_without_dropout_a_network_is_what_it_was():
    for name in ("vgg16", "vgg19", "lenet300", "lenet5"):
        with torch.device("meta"):
            plain, asked, other = models.build(name), models.build(f"{name}(dropout=0.0)"), models.build(f"{name}(dropout=0.4)")
        assert plain.state_dict().keys() == asked.state_dict().keys()
        new = other.state_dict().keys() - plain.state_dict().keys()
        assert (
            new == {"hidden.dropout.rate"}
            if "vgg" in name
            else {f"linear.{i}.dropout.rate" for i in range(len(other.linear) - 1)}
        )
    with pytest.raises(ValueError, match="below 1"):
        models.build("vgg16(dropout=1.0)")


def test_scores_and_statistics_are_without_dropout():
    network = narrow(models.build("vgg16(dropout=0.5)", classes=4))
    batches = [(torch.randn(6, 3, 32, 32), torch.randint(0, 4, (6,))) for _ in range(2)]
    pruner = Pruner(network, prune_type="unstructured", criterion="syn", rate=0.5)
    pruner.begin(2, 2, lambda: iter(batches))
    with unchanged(network):
        first, second = pruner.scores(), pruner.scores()
    assert all(torch.equal(first[name], second[name]) for name in first)
    with unchanged():
        recalibrate_statistics(network, batches, torch.no_grad)


@pytest.mark.core
@pytest.mark.parametrize("rate", [-0.1, 1.0, 7.0])
def test_a_file_with_another_rate_is_refused(rate):
    own = lenet().state_dict()
    check_values(own, own, "model")
    with pytest.raises(Unfit, match=r"linear\.0\.dropout\.rate is no rate"):
        check_values(own, own | {"linear.0.dropout.rate": torch.tensor(rate)}, "model")


def rates_by_masks(tensors: dict, original: float) -> dict:
    """The rates of dropout that follow from the masks among a network's tensors."""
    of = {name.removesuffix(".dropout.rate") for name in tensors if name.endswith(".dropout.rate")}
    masks = {name: tensors[f"{name}.gate.mask"] for name in of}
    return {name: original * math.sqrt(mask.sum().item() / mask.numel()) for name, mask in masks.items()}


@pytest.mark.parametrize("at", [1, 2])
def test_dropout_and_rounds_go_on_where_they_were(tmp_path, monkeypatch, at):
    """From scratch: half of the epochs are dense, then two rounds; the run that was stopped ends with the same numbers."""
    flags = ["--recipe", "han2015", "--rounds", "2", "--epochs", "4", "--image_size", "16", "--lr", "0.01"]
    whole = trains_and_resumes(tmp_path, monkeypatch, *flags, network=lenet, at=at)
    total = sum(value.numel() for name, value in whole["model"].items() if name.endswith("gate.mask"))
    assert [row["cut"] for row in whole["rows"]] == [0, 0, int(0.45 * total + 1e-9), int(0.9 * total + 1e-9)]
    (name, wanted), *_ = rates_by_masks(whole["model"], 0.5).items()
    assert wanted < 0.3
    assert float(whole["model"][f"{name}.dropout.rate"]) == pytest.approx(wanted, abs=1e-6)
    summaries = [json.loads(Path(folder, "summary.json").read_text()) for folder in ("whole", "part")]
    for summary in summaries:
        assert summary["dropout"] == {name: {"original": 0.5, "rate": pytest.approx(wanted, abs=1e-6)}}
        assert sum(layer["left"] for layer in summary["weights"].values()) == total - int(0.9 * total + 1e-9)


def test_a_trained_network_is_retrained_at_a_tenth(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_program(*SMALL, "--arch", "lenet300(dropout=0.5)", "--epochs", "1", "--lr", "0.03", "--out_dir", "dense")
    capsys.readouterr()
    loud = [flag for flag in SMALL if flag != "--quiet"]
    run_program(*loud, "--init", "dense", "--recipe", "han2015", "--rounds", "2", "--epochs", "2", "--out_dir", "cut")
    out, err = capsys.readouterr()
    assert "learning rate 0.003, 1/10 of that of 'dense'\n" in err
    settings = json.loads(Path("cut/config.json").read_text())["settings"]
    assert (settings["lr"], settings["weight_decay"], settings["lr_schedule"]) == (0.003, 5e-4, "constant")
    assert (settings["prune_scope"], settings["prune_phase"]) == ("deviation", "iterative(rounds=2)")
    tensors = torch.load("cut/checkpoint.pt", weights_only=True)["model"]
    for name, rate in rates_by_masks(tensors, 0.5).items():
        assert f"result dropout: {name} {rate:.4g}, 0.5 before weights were cut\n" in out
    # the first cut is of the trained values, by numpy's deviation
    run_program(*SMALL, "--init", "dense", "--recipe", "han2015", "--rounds", "1", "--epochs", "1", "--out_dir", "once")
    dense = torch.load("dense/checkpoint.pt", weights_only=True)["model"]
    multiples = {
        name: torch.tensor(abs(value.numpy()) / value.numpy().std())
        for name, value in dense.items()
        if name.endswith("layer.weight")
    }
    every = torch.cat([value.flatten() for value in multiples.values()])
    k = int(0.9 * len(every) + 1e-9)
    q = every.kthvalue(k).values
    masks = torch.load("once/checkpoint.pt", weights_only=True)["model"]
    cut = 0
    for name, value in multiples.items():
        mask = masks[name.replace("layer.weight", "gate.mask")]
        cut += int((mask == 0).sum())
        assert (value[mask == 0] <= q * (1 + 1e-5)).all()
        assert (value[mask == 1] >= q * (1 - 1e-5)).all()
    assert cut == k
    # a file by itself, and a rate that was typed
    shutil.copy("dense/checkpoint.pt", "alone.pt")
    alone = ["--init", "alone.pt", "--recipe", "han2015", "--device", "cpu", "--data_dir", TINY_DATA[3]]
    assert modeling.start(parse(alone)).settings.training.lr == 0.003
    assert parse(["--init", "dense", "--recipe", "han2015", "--lr", "0.05"]).training.lr == 0.05
    state = torch.load("alone.pt", weights_only=True)
    del state["settings"]["lr"]
    torch.save(state, "alone.pt")
    with pytest.raises(Refused, match=r"no 'lr'|does not say at which learning rate"):
        modeling.start(parse(alone))


@pytest.mark.core
def test_from_scratch_half_of_the_run_is_dense():
    settings = parse(["--recipe", "han2015", "--arch", "lenet5"])
    pruning, training = settings.pruning, settings.training
    assert (pruning.prune_type, pruning.prune_rate, pruning.prune_scope) == ("unstructured", 0.9, "deviation")
    assert (pruning.prune_phase, pruning.prune_until) == ("iterative(rounds=5, start=0.5)", 1.0)
    assert (training.lr, training.lr_schedule) == (0.2, "step(drops=(0.5,))")
    assert parse(["--recipe", "han2015", "--rounds", "3"]).pruning.prune_phase == "iterative(rounds=3, start=0.5)"
    by_threshold = parse(["--recipe", "han2015", "--prune_scope", "deviation(q=1.0)"]).pruning
    assert (by_threshold.prune_rate, by_threshold.prune_scope) == (0.0, "deviation(q=1.0)")
    with pytest.raises(Refused, match="deviation is about single weights"):
        parse(["--recipe", "han2015", "--prune_type", "structured"])


def test_beside_gates_that_learn_dropout_stays(tmp_path, monkeypatch):
    """What they have closed changes at every step, and at the beginning of a stage it is not scaled either."""
    flags = ["--prune_type", "unstructured", "--prune_gate", "variational(begin=0, full=1, weight=300.0)", "--lr", "0.01"]
    monkeypatch.chdir(tmp_path)
    run_program(*SMALL, "--arch", "resnet20(dropout=0.5)", *flags, "--epochs", "2", "--recalibrate", "1", "--out_dir", "run")
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["weights"]["stage1.0.conv1"]["left"] < summary["weights"]["stage1.0.conv1"]["of"]
    assert {rates["rate"] for rates in summary["dropout"].values()} == {0.5}


def test_dropout_follows_an_action_that_cuts(tmp_path, monkeypatch):
    """The cut is by the action of --reconstruct, not before a step."""
    monkeypatch.chdir(tmp_path)
    run_program(*SMALL, "--arch", "lenet5(dropout=0.5)", "--epochs", "1", "--lr", "0.01", "--out_dir", "dense")
    flags = ["--prune_type", "unstructured", "--prune_scope", "local", "--prune_rate", "0.75", "--prune_phase", "init"]
    repair = ["--reconstruct", "hessian(block=8, images=16)", "--epochs", "1", "--lr", "0.01", "--out_dir", "cut"]
    run_program(*SMALL, "--init", "dense", *flags, *repair)
    dropout = json.loads(Path("cut/summary.json").read_text())["dropout"]
    assert dropout == {"linear.0": {"original": 0.5, "rate": pytest.approx(0.25, abs=1e-4)}}
