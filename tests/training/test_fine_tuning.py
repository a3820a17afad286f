"""Smoothed labels, mixed images, accumulated batches, averaged weights and the best epoch are what they are said to be."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, TINY_DATA, TwoBlocks, run_program
from promises import PRUNED, differences, records, trains_and_resumes
from tqdm import tqdm

import modeling
import models
from models import files
from settings.arguments import parse
from tasks.classes import class_weights
from tasks.meters import Accuracy
from tasks.mixing import Mixed, mixed
from training.averaging import Average
from training.best import end_stage
from training.stages import plan_of
from training.turns import groups_text, images_of, turns

pytestmark = pytest.mark.core

EPOCHS = [*TINY_DATA, "--batch_size", "18", "--amp", "off", "--quiet"]


@pytest.fixture
def _small(monkeypatch):
    monkeypatch.setattr(models, "build", lambda _, classes=10, **__: TwoBlocks(classes=classes))


def begun(*flags):
    run = modeling.start(parse([*EPOCHS, "--epochs", "1", *flags]))
    run.model.train()
    return run


# smoothed labels


@pytest.mark.usefixtures("_small")
def test_smoothed_labels_are_torchs_and_of_training_alone():
    run, plain = begun("--label_smoothing", "0.2"), begun()
    assert run.evaluate(run.task.test) == plain.evaluate(plain.task.test)
    inputs, labels = next(run.batches(0))
    outputs, terms = run.losses(inputs, labels)
    assert torch.equal(terms["cross_entropy"], F.cross_entropy(outputs, labels, label_smoothing=0.2))
    assert torch.equal(run.task.image_losses(outputs, labels), F.cross_entropy(outputs, labels, reduction="none"))


@pytest.mark.usefixtures("_small")
def test_a_weighted_class_counts_by_its_smoothed_loss():
    run = begun("--label_smoothing", "0.2", "--class_weights", "balanced")
    inputs, labels = next(run.batches(0))
    outputs, terms = run.losses(inputs, labels)
    each = F.cross_entropy(outputs, labels, reduction="none", label_smoothing=0.2)
    weights = class_weights(run.task.train, 3)[labels]
    torch.testing.assert_close(terms["cross_entropy"], (each * weights).mean())


# mixed images


def batches(number=3, images=4):
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(images, 3, 8, 8, generator=generator), torch.arange(images) + step) for step in range(number)]


def test_images_and_labels_are_mixed_in_one_share():
    for (inputs, labels), (mixture, targets) in zip(batches(), mixed(batches(), 0.4, 0, 0), strict=True):
        order = [int((targets.others == label).nonzero()) for label in labels]
        others = torch.empty_like(inputs)
        others[order] = inputs
        assert torch.equal(targets.labels, labels)
        torch.testing.assert_close(mixture, targets.share * inputs + (1 - targets.share) * others)
        assert 0 <= targets.share <= 1
        assert len(targets) == 4


def test_shares_depend_on_seed_and_epoch_and_are_of_that_distribution():
    def shares(*place, alpha=0.4):
        return [float(targets.share) for _, targets in mixed(batches(400, 2), alpha, *place)]

    assert shares(0, 0) == shares(0, 0)
    assert shares(0, 0) != shares(0, 1)
    assert shares(0, 0) != shares(1, 0)
    # the variance of Beta(a, a) is 1 / (4 (2 a + 1))
    for alpha in (0.4, 2.0):
        drawn = np.array(shares(0, 0, alpha=alpha))
        assert abs(drawn.mean() - 0.5) < 0.06
        assert abs(drawn.var() * 4 * (2 * alpha + 1) - 1) < 0.15


@pytest.mark.usefixtures("_small")
def test_a_share_of_1_changes_nothing(monkeypatch):
    class One(np.random.RandomState):
        def beta(self, *_):
            return 1.0

    monkeypatch.setattr(np.random, "RandomState", One)
    run, plain = begun("--mixup", "0.2"), begun()
    for (*_, inputs, targets), (*_, wanted, labels) in zip(turns(run, 0), turns(plain, 0), strict=True):
        assert torch.equal(inputs, wanted)
        outputs, terms = run.losses(inputs, targets)
        _, plain_terms = plain.losses(wanted, labels)
        assert torch.equal(terms["cross_entropy"], plain_terms["cross_entropy"])
        meters = Accuracy("cpu"), Accuracy("cpu")
        meters[0].add(outputs, targets, terms)
        meters[1].add(outputs, labels, plain_terms)
        assert meters[0].read() == meters[1].read()


def test_the_loss_is_that_of_both_labels_and_so_is_the_accuracy():
    outputs = torch.tensor([[4.0, 1.0, 0.0], [0.0, 1.0, 3.0]])
    targets = Mixed(torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor(0.75))
    term = modeling.start(parse([*EPOCHS])).task.losses(outputs, targets)["cross_entropy"]
    by_hand = 0.75 * F.cross_entropy(outputs, targets.labels) + 0.25 * F.cross_entropy(outputs, targets.others)
    torch.testing.assert_close(term, by_hand)
    meter = Accuracy("cpu")
    meter.add(outputs, targets, {"cross_entropy": term})
    assert meter.read()["top1"] == pytest.approx(100 * (0.75 + 0.25) / 2)  # the first by its label, the second by its other


# accumulated batches


@pytest.mark.parametrize("reg", [[], ["--reg", "l1", "--odecay", "0.01"]], ids=["plain", "penalty"])
def test_several_batches_are_one_large_batch(reg):
    """Of a network without batch norm, in float64: the loss, a penalty, momentum and weight decay."""

    def trained(*flags):
        run = begun("--arch", "lenet5", "--lr", "0.01", "--weight_decay", "0.01", "--augment", "none", *reg, *flags)
        assert not any("running_mean" in name for name in run.model.state_dict())
        run.model.double()
        for step, part, inputs, labels in turns(run, 0):
            if part[0] == 0:
                run.set_learning_rate(0, step)
            modeling.train_step(run, inputs.double(), labels, part)
        return run.steps, torch.cat([value.flatten() for value in run.model.parameters()])

    (steps, weights), (large_steps, large) = trained("--batch_size", "6", "--accumulate", "3"), trained("--batch_size", "18")
    assert steps == large_steps == 3
    torch.testing.assert_close(weights, large, rtol=0, atol=1e-6)
    _, other = trained("--batch_size", "6", "--accumulate", "1")
    assert (weights - other).abs().max() > 1e-4


@pytest.mark.usefixtures("_small")
def test_the_last_step_of_an_epoch_is_of_the_batches_that_are_left():
    run = begun("--batch_size", "9", "--accumulate", "4")
    assert run.task.steps == 6
    places = [(step, part) for step, part, *_ in turns(run, 0)]
    assert places == [(0, (0, 4)), (0, (1, 4)), (0, (2, 4)), (0, (3, 4)), (1, (0, 2)), (1, (1, 2))]
    assert (run.steps, images_of(run), images_of(run, 1)) == (2, 54, 18)
    assert modeling.train_epoch(run, 0, tqdm(disable=True))["images"] == 54
    assert groups_text(run) == ["a step of the optimiser is of 36 images, the last one of an epoch of 18"]
    assert groups_text(begun()) == []


@pytest.mark.usefixtures("_small")
def test_masks_and_the_schedule_count_steps_of_the_optimiser():
    flags = ["--batch_size", "9", "--accumulate", "2", "--prune_type", "structured", "--prune_freq", "2it", "--epochs", "2"]
    run = begun(*flags, "--lr_schedule", "step(drops=(0.5,))", "--prune_until", "1")
    assert run.steps == 3
    assert [*run.pruner.positions] == [1, 4]
    assert [round(run.learning_rate(epoch, step), 3) for epoch in range(2) for step in range(3)] == [0.2] * 3 + [0.02] * 3


# averaged weights


def test_the_average_is_the_recursion(two_blocks):
    average, wanted = Average(two_blocks, 0.6), {}
    for name, value in two_blocks.state_dict().items():
        if "num_batches" not in name:
            wanted[name] = value.clone()
    assert average.values.keys() == wanted.keys()
    for step in range(12):
        with torch.no_grad():
            for value in (*two_blocks.parameters(), *(unit.norm.running_var for unit in two_blocks.units.values())):
                value.add_(torch.rand_like(value))
        average.update()
        decay = min(0.6, (1 + step) / (10 + step))
        for name, value in two_blocks.state_dict().items():
            if name in wanted:
                wanted[name] = decay * wanted[name] + (1 - decay) * value
    for name, value in average.values.items():
        torch.testing.assert_close(value, wanted[name])
    trained = copy.deepcopy(two_blocks.state_dict())
    with average.in_force():
        assert all(torch.equal(two_blocks.state_dict()[name], value) for name, value in average.values.items())
    assert differences(trained, two_blocks.state_dict()) == []


@pytest.mark.usefixtures("_small")
def test_what_is_evaluated_and_left_is_the_average_under_the_masks(monkeypatch):
    run = begun("--ema", "0.5", *PRUNED, "--epochs", "2")
    seen = []
    evaluate = run.evaluate

    def watched(*arguments, **options):
        seen.append({name: value.clone() for name, value in run.model.state_dict().items()})
        return evaluate(*arguments, **options)

    run.evaluate = watched
    averages = []
    monkeypatch.setattr(modeling, "end_stage", lambda run, rows: (averages.append(run.average), end_stage(run, rows)))
    modeling.train(run, None, [])
    (average,) = averages
    for name, value in average.values.items():
        assert torch.equal(seen[-1][name], value)
        assert torch.equal(run.model.state_dict()[name], value)
    assert (seen[-1]["stem.gate.mask"] == 0).any() or (seen[-1]["a1.gate.mask"] == 0).any()
    assert any((seen[0][name] != seen[1][name]).any() for name in average.values)


def test_what_is_removed_saved_and_begun_with_is_the_average(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_program(*EPOCHS, "--layers", "20", "--epochs", "1", "--ema", "0.5", *PRUNED, "--compact", "--out_dir", "small")
    state = torch.load("small/checkpoint.pt", weights_only=True)
    smaller, average = files.load("small/model.pt"), state["average"]["values"]
    keep = state["model"]["stage1.0.conv1.gate.mask"].bool()
    variances = average["stage1.0.conv1.norm.running_var"][keep]
    assert 0 < len(variances) < 16
    torch.testing.assert_close(smaller.get_submodule("stage1.0.conv1").norm.running_var, variances)
    monkeypatch.setattr(models, "build", lambda _, classes=10, **__: TwoBlocks(classes=classes))
    run_program(*EPOCHS, "--epochs", "1", "--ema", "0.5", "--out_dir", "whole")
    whole = torch.load("whole/checkpoint.pt", weights_only=True)
    started = modeling.start(parse([*EPOCHS, "--epochs", "1", "--init", "whole"]))
    assert torch.equal(started.model.stem.weight, whole["average"]["values"]["stem.layer.weight"])
    assert not torch.equal(started.model.stem.weight, whole["model"]["stem.layer.weight"])


# the best epoch


def with_accuracies(run, accuracies):
    """Train with these accuracies on the held-out images: the rows, and the network after each epoch."""
    told, states = iter(accuracies), []

    def evaluate(*_, **__):
        states.append({name: value.clone() for name, value in run.model.state_dict().items()})
        accuracy = next(told)
        return {"top1": accuracy, "top5": accuracy, "loss": 1.0, "cross_entropy": 1.0, "images": 6}

    run.evaluate = evaluate
    return modeling.train(run, None, []), states


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("ema", [[], ["--ema", "0.5"]], ids=["", "ema"])
def test_the_best_epoch_is_restored_exactly(ema):
    run = begun("--keep_best", "--epochs", "4", *ema)
    _, states = with_accuracies(run, [50.0, 70.0, 70.0, 60.0])
    assert run.results["kept"] == {"epoch": 1, "valid": 70.0, "last": 60.0}
    assert differences(states[1], dict(run.model.state_dict())) == []
    plain = begun("--epochs", "4")
    _, states = with_accuracies(plain, [50.0, 70.0, 70.0, 60.0])
    assert differences(states[3], dict(plain.model.state_dict())) == []
    assert "kept" not in plain.results


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(
    ("flags", "first"),
    [
        ([], 2),  # masks are made before epochs 0, 1 and 2 of 4
        (["--prune_until", "0.5"], 1),
        (["--prune_freq", "2it"], 2),
        (["--prune_phase", "init"], 0),
        (["--prune_phase", "after", "--prune_until", "0.75"], 3),
        (["--prune_phase", "iterative(rounds=2)"], 1),
        (["--prune_gate", "soft"], 2),  # made anew behind epochs 0, 1 and 2, the last one before it is measured
    ],
)
def test_no_epoch_before_the_last_change_of_masks_is_kept(flags, first):
    run = begun("--keep_best", "--epochs", "4", *PRUNED, *flags)
    made = []
    update = run.pruner.update
    run.pruner.update = lambda rate: (made.append(len(states)), update(rate))
    states = []

    def evaluate(*_, **__):
        states.append({name: value.clone() for name, value in run.model.state_dict().items()})
        return {"top1": 90.0 - len(states), "top5": 0.0, "loss": 1.0, "cross_entropy": 1.0, "images": 6}

    run.evaluate = evaluate
    modeling.train(run, None, [])
    assert run.results["kept"]["epoch"] == first == max(made)
    assert differences(states[first], dict(run.model.state_dict())) == []


@pytest.mark.usefixtures("_small")
def test_only_the_last_stage_that_trains_is_asked():
    flags = ["--prune_type", "structured", "--procedure", "slimming", "--reg", "bn_l1", "--epochs", "2", "--keep_best"]
    run = begun(*flags)
    assert run.plan.last_trained == 1
    with_accuracies(run, [90.0, 80.0, 0.0, 0.0, 40.0, 30.0])  # two of the selection among them
    assert run.results["kept"] == {"epoch": 2, "valid": 40.0, "last": 30.0}
    plan = plan_of(parse([*EPOCHS, *PRUNED, "--compact"]))
    assert plan.last_trained == 0
    plan = plan_of(parse([*EPOCHS, *PRUNED, "--compact", "--finetune_epochs", "2"]))
    assert plan.last_trained == 1


def test_the_result_says_which_epoch_and_tests_its_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_program(*TINY, "--epochs", "4", "--amp", "off", "--keep_best", "--quiet", "--out_dir", "run")
    out = capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    kept, rows = summary["kept"], records("run")["rows"]
    accuracies = [row["valid"]["top1"] for row in rows]
    assert kept == {"epoch": accuracies.index(max(accuracies)), "valid": max(accuracies), "last": accuracies[-1]}
    assert f"result kept: the weights after epoch {kept['epoch']}, accuracy {kept['valid']:.2f} on the held-out images" in out
    assert f"after epoch {kept['epoch']}, the one kept (24 images)" in out
    tensors = dict(files.load(tmp_path / "run" / "model.pt").state_dict())
    best = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["best"]["model"]
    assert differences(tensors, best) == []
    (tmp_path / "run" / "summary.json").unlink()
    run_program("--resume", "run", "--quiet")
    again = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [again[name] for name in ("kept", "test", "last")] == [summary[name] for name in ("kept", "test", "last")]
    assert differences(tensors, dict(files.load(tmp_path / "run" / "model.pt").state_dict())) == []
    run_program("--resume", "run", "--quiet", "--epochs", "5")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["last"]["epoch"] == 4


# all of them


TOGETHER = ["--label_smoothing", "0.1", "--mixup", "0.2", "--accumulate", "2", "--ema", "0.9", "--keep_best"]


@pytest.mark.parametrize(
    "flags",
    [TOGETHER, [*TOGETHER, *PRUNED, "--prune_until", "0.5", "--compact"], ["--ema", "0.9", "--keep_best"], ["--mixup", "0.5"]],
    ids=["all", "pruned", "weights", "mixup"],
)  # fmt: skip
def test_a_run_that_goes_on_ends_in_the_same_bits(tmp_path, monkeypatch, flags):
    found = trains_and_resumes(tmp_path, monkeypatch, "--batch_size", "9", *flags)
    assert ("average" in found) == ("--ema" in flags)


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("label_smoothing", ["0", "0.1", "0.3"]),
        ("mixup", ["0", "0.2", "1"]),
        ("accumulate", ["1", "2", "3"]),
        ("ema", ["0", "0.3", "0.99"]),
    ],
)
def test_two_values_are_two_results(flag, values):
    ends = []
    for value in (None, *values):
        run = begun("--epochs", "2", "--batch_size", "9", *([f"--{flag}", value] if value else []))
        modeling.train(run, None, [])
        ends.append(run.model.stem.weight.detach().clone())
    default, off, *others = ends
    assert torch.equal(default, off)  # the default changes nothing
    assert all(not torch.equal(default, other) for other in others)
    assert not torch.equal(*others)


@pytest.mark.usefixtures("_small")
def test_an_average_of_another_network_is_refused():
    run = begun("--ema", "0.9")
    for saved in (None, {"steps": 1, "values": {}}, {"steps": -1, "values": {"stem.layer.weight": torch.zeros(1)}}):
        with pytest.raises(ValueError, match="average"):
            run.average.take(saved)
