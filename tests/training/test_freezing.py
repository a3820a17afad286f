"""With --freeze the classifier learns alone at first: all else stays bit for bit, and a run goes on to the same tensors."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY_DATA, run_program
from promises import differences, records

import modeling
import models
from training.freezing import begin_momentum, classifier_alone

FLAGS = [*TINY_DATA, "--batch_size", "18", "--deterministic", "--quiet", "--lr", "0.01"]
CUT = ["--prune_type", "structured", "--prune_rate", "0.3"]


@pytest.fixture
def dense(monkeypatch, tmp_path):
    """A trained network, in the folder `dense` of the present one."""
    monkeypatch.chdir(tmp_path)
    run_program(*FLAGS, "--layers", "20", "--epochs", "1", "--out_dir", "dense")
    return torch.load("dense/checkpoint.pt", weights_only=True)["model"]


@pytest.fixture
def seen(monkeypatch):
    """What the model and the optimiser of a run hold after each epoch, by epoch."""
    states, train = {}, modeling.train_epoch

    def keeps(run, epoch, bar):
        measures = train(run, epoch, bar)
        learned = [id(parameter) for parameter in run.optimizer.state]
        state = {name: value.clone() for name, value in run.model.state_dict().items()}
        states[epoch] = (state, [name for name, value in run.model.named_parameters() if id(value) in learned])
        if Path("whole").exists() and not Path(f"at{epoch}").exists():
            shutil.copytree("whole", f"at{epoch}")
        return measures

    monkeypatch.setattr(modeling, "train_epoch", keeps)
    return states


@pytest.mark.parametrize("more", [
    ["--optimizer", "sgd"],
    [*CUT, "--optimizer", "adamw"],
    [*CUT, "--reg", "group_lasso", "--odecay", "0.1"],
    [*CUT, "--teacher", "dense", "--distill", "KD + FitNet", "--prune_imp", "Taylor2019"],
    ["--prune_type", "unstructured", "--prune_phase", "init", "--prune_imp", "SNIP"],
    ["--prune_type", "structured", "--prune_gate", "hard_concrete"],
], ids=" ".join)  # fmt: skip
def test_the_classifier_alone_learns_at_first(dense, seen, more):
    run_program(*FLAGS, "--init", "dense", "--epochs", "3", "--freeze", "2", *more, "--out_dir", "whole")
    for epoch in (0, 1):
        state, learned = seen[epoch]
        assert set(learned) == {"classifier.layer.weight", "classifier.layer.bias"}
        for name, value in dense.items():
            assert torch.equal(state[name], value) == (not name.startswith("classifier")), name
    state, learned = seen[2]
    assert {"stem.layer.weight", "classifier.layer.weight"} <= {*learned}
    assert not torch.equal(state["stem.layer.weight"], dense["stem.layer.weight"])
    assert not torch.equal(state["stem.norm.running_mean"], dense["stem.norm.running_mean"])
    whole = records("whole")
    for folder in ("at1", "at2") if "sgd" in more else ("at2",):
        run_program("--resume", folder, "--quiet")
        assert differences(whole, records(folder)) == []
    assert whole["settings"]["freeze"] == 2


def test_rounds_that_rewind_into_the_first_epochs_go_on(dense, seen):
    flags = [*FLAGS, "--init", "dense", "--epochs", "2", "--freeze", "1", "--prune_type", "unstructured"]
    run_program(*flags, "--procedure", "rounds(n=2, to='1it')", "--out_dir", "whole")
    whole = records("whole")
    run_program("--resume", "at1", "--quiet")
    assert differences(whole, records("at1")) == []


def test_a_first_step_with_a_momentum_of_0_is_a_first_step():
    def stepped(begin):
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(3)) for _ in range(2)]
        optimizer = torch.optim.SGD(weights, 0.1, momentum=0.9, weight_decay=0.1)
        for learning in (weights[:1], weights, weights):
            optimizer.zero_grad()
            sum((weight**3).sum() for weight in learning).backward()
            if begin and learning is weights:
                begin_momentum(optimizer)
            optimizer.step()
        return torch.cat(weights).detach()

    assert torch.equal(stepped(True), stepped(False))


def test_all_but_the_classifier_is_evaluated():
    network = models.build("vgg16(dropout=0.5, widen=0.05)")
    learning = classifier_alone(network)
    assert [id(value) for value in learning] == [id(value) for value in network.classifier.parameters()]
    assert [name for name, unit in network.all_units.items() if unit.training] == ["classifier"]
    dropping = models.build("resnet20(dropout=0.5)")
    classifier_alone(dropping)
    assert dropping.classifier.dropout.training
    classifier_alone(dropping, noise=False)
    assert not dropping.classifier.dropout.training
    heads = models.build("ssd300_vgg16(width=0.05)")
    assert len(classifier_alone(heads)) == 4 * 6
