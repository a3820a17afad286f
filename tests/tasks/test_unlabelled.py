"""These tests are about images without labels: which they are, which of them are used, and what they add to the loss."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_DATA, run_program

import tasks
from settings.arguments import parse
from settings.errors import Refused
from settings.schema import Unfit
from tasks.classification import Classification
from tasks.unlabelled import Unlabelled, choose, terms
from tasks.views import Augmentation

pytestmark = pytest.mark.core

# of class 0: images 0, 1, 5, 6; of 1: 2, 4; of 2: 3, whose largest probability is no higher than 0.4
SAID = torch.tensor(
    [[0.9, 0.05, 0.05], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.2, 0.5, 0.3], [0.9, 0.1, 0.0], [0.5, 0.4, 0.1]]
)


def digits(*flags, seed: int = 0, batch: int = 32):
    settings = parse(["--dataset", "digits", *flags])
    return tasks.load(settings.data, batch_size=batch, seed=seed, device="cpu")


def test_the_labelled_images_are_a_fraction_of_each_class():
    whole, task = digits(), digits("--labelled", "0.1")
    every = torch.bincount(whole.train.labels, minlength=10)
    labelled = torch.bincount(task.train.labels, minlength=10)
    assert labelled.tolist() == [round(0.1 * int(count)) for count in every]
    assert torch.equal(torch.bincount(task.unlabelled.true, minlength=10), every - labelled)
    assert len(task.unlabelled) + len(task.train) == len(whole.train)
    rows = torch.cat([task.train.pixels, task.unlabelled.pixels]).flatten(1)
    assert torch.equal(rows.unique(dim=0), whole.train.pixels.flatten(1).unique(dim=0))
    assert task.steps == len(task.train) // 32
    assert torch.equal(task.valid.labels, whole.valid.labels)
    assert task.normalisation == whole.normalisation
    assert task.record()["images"]["unlabelled"] == [len(task.unlabelled)]


def test_the_seed_alone_chooses_them():
    one, same, other = (digits("--labelled", "0.1", seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.train.pixels, same.train.pixels)
    assert torch.equal(one.valid.pixels, other.valid.pixels)
    assert not torch.equal(one.train.pixels, other.train.pixels)


def test_every_class_has_a_labelled_image():
    with pytest.raises(
        Refused, match=r"--labelled 0\.002 of 1292 images leaves 7 of 10 classes without a labelled one"
    ) as caught:
        digits("--labelled", "0.002")
    assert "\n" not in str(caught.value)


def test_the_filter_keeps_what_is_sure_and_the_balance_repeats_or_cuts():
    passed, chosen = choose(SAID, 0.45, 3)
    assert passed.tolist() == [0, 1, 2, 4, 5, 6]
    # of class 0 the surest three, equal ones by number; of class 1 both, and the surer one again; of class 2 none passed
    assert chosen.tolist() == [0, 5, 1, 2, 4, 2]
    assert choose(SAID, 0.45, 0)[1].tolist() == [0, 1, 2, 4, 5, 6]
    assert choose(SAID, 0.6, 0)[0].tolist() == [0, 2, 5]  # not image 1: 0.6 is not above 0.6
    assert choose(SAID, 0.3, 2)[1].tolist() == [0, 5, 2, 4, 3, 3]
    assert choose(SAID, 0.95, 2)[1].tolist() == []


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_images_are_taken_for_what_the_teacher_says(labels):
    images = Unlabelled(torch.zeros(7, 8, 8, 3, dtype=torch.uint8), torch.tensor([0, 1, 1, 2, 1, 0, 0]))
    wanted = {"labels": labels, "confidence": 0.45, "balance": True, "images_a_class": 0, "ratio": 2}
    facts = images.label(SAID, **wanted)
    # an equal share of 7 images for 3 classes is 2; of the six that passed, image 1 is taken for another class
    assert facts == {"unlabelled": 7, "passed": 6, "used": 4, "of_classes": 2, "correct": round(100 * 5 / 6, 4)}
    assert images.pseudo.images.tolist() == [0, 5, 2, 4]
    assert torch.equal(images.pseudo.targets, SAID if labels == "soft" else torch.tensor([0, 0, 1, 2, 1, 0, 0]))
    again = Unlabelled(images.pixels)
    again.take(images.plain(), 3)
    assert all(torch.equal(value, again.plain()[name]) for name, value in images.plain().items() if name != "ratio")
    with pytest.raises(ValueError, match=r"above 0\.95: the largest is 0\.900"):
        images.label(SAID, **wanted | {"confidence": 0.95})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.tensor([7])}, "of other unlabelled images than these 7"),
        ({"images": torch.tensor([0.0])}, "no numbers of images"),
        ({"targets": torch.zeros(6, 3)}, "of other unlabelled images than these 7"),
        ({"targets": torch.zeros(7, 4)}, "neither classes nor probabilities"),
        ({"targets": torch.tensor([0, 1, 2, 3, 0, 0, 0])}, "neither classes nor probabilities"),
        ({"targets": torch.full((7, 3), torch.nan)}, "neither classes nor probabilities"),
        ({"ratio": 0}, "pseudo_labels.ratio"),
    ],
)
def test_pseudo_labels_of_something_else_are_refused(change, message):
    images = Unlabelled(torch.zeros(7, 8, 8, 3, dtype=torch.uint8))
    with pytest.raises(Unfit, match=message):
        images.take({"images": torch.tensor([0, 6]), "targets": torch.zeros(7, 3), "ratio": 1} | change, 3)
    with pytest.raises(Unfit):
        images.take(None, 3)


def test_the_loss_is_the_sum_over_both_divided_by_the_labels():
    torch.manual_seed(1)
    outputs, labels, said = torch.randn(12, 4), torch.randint(0, 4, (4,)), torch.rand(8, 4).softmax(1)
    found = Classification.losses(outputs, (labels, said))
    torch.testing.assert_close(found["cross_entropy"], F.cross_entropy(outputs[:4], labels))
    by_hand = -(said * outputs[4:].log_softmax(1)).sum(1)
    torch.testing.assert_close(found["pseudo_labels"], 2 * by_hand.mean())
    torch.testing.assert_close(sum(found.values()), (F.cross_entropy(outputs[:4], labels, reduction="sum") + by_hand.sum()) / 4)
    hard = terms(F.cross_entropy, outputs, (labels, said.argmax(1)))["pseudo_labels"]
    torch.testing.assert_close(
        hard, terms(F.cross_entropy, outputs, (labels, F.one_hot(said.argmax(1), 4).float()))["pseudo_labels"]
    )


def test_weights_of_classes_are_of_labelled_images_alone():
    task = digits("--labelled", "0.1", "--class_weights", "balanced")
    outputs, labels, said = torch.randn(8, 10), torch.randint(0, 10, (4,)), torch.rand(4, 10).softmax(1)
    found = task.losses(outputs, (labels, said))
    counts = torch.bincount(task.train.labels, minlength=10)
    weights = len(task.train) / (10 * counts.float())
    torch.testing.assert_close(
        found["cross_entropy"], (F.cross_entropy(outputs[:4], labels, reduction="none") * weights[labels]).mean()
    )
    torch.testing.assert_close(found["pseudo_labels"], F.cross_entropy(outputs[4:], said))


def test_the_meter_counts_labelled_images():
    outputs, labels, said = torch.randn(12, 4), torch.randint(0, 4, (4,)), torch.rand(8, 4).softmax(1)
    meter = Classification.meter("cpu")
    found = terms(F.cross_entropy, outputs, (labels, said))
    meter.add(outputs, (labels, said), found)
    read = meter.read()
    assert read["images"] == 4
    assert read["top1"] == pytest.approx(100 * float((outputs[:4].argmax(1) == labels).float().mean()))
    assert read["pseudo_labels"] == pytest.approx(float(found["pseudo_labels"]), rel=1e-6)


def test_a_batch_holds_labelled_images_and_then_ratio_times_as_many_others():
    task = digits("--labelled", "0.1", batch=32)
    plain = list(task.batches(3))
    said = F.one_hot(task.unlabelled.true, 10).float()
    images = task.unlabelled
    images.label(said, labels="hard", confidence=0.3, balance=False, images_a_class=0, ratio=3)
    mixed = list(task.batches(3))
    assert [len(inputs) for inputs, _ in mixed] == [128] * task.steps
    for (inputs, targets), (alone, labels) in zip(mixed, plain, strict=True):
        assert torch.equal(inputs[:32], alone)
        assert torch.equal(targets[0], labels)
    parts = [list(task.batches(3, (number, 2))) for number in (0, 1)]
    for step, (inputs, (labels, guessed)) in enumerate(mixed):
        halves = [part[step] for part in parts]
        assert torch.equal(torch.cat([half[0][:16] for half in halves] + [half[0][16:] for half in halves]), inputs)
        assert torch.equal(torch.cat([half[1][0] for half in halves]), labels)
        assert torch.equal(torch.cat([half[1][1] for half in halves]), guessed)
    generator = torch.Generator().manual_seed(0)
    views, targets = images.views(2 * len(images) // 3, Augmentation(), generator)
    assert sorted(views.order[: len(images)].tolist()) == list(range(len(images)))
    assert torch.equal(targets, images.true[views.order])
    assert torch.equal(views[5:9], images.pixels[views.order[5:9]])


def test_pictures_without_classes_become_the_networks_size(tmp_path, monkeypatch):
    folder = Path(TINY_DATA[3]) / "train"
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "deep").symlink_to(folder)
    settings = parse(["--dataset", "digits", "--image_size", "12", "--procedure", "noisy_student", "--unlabelled", str(tmp_path)])
    task = tasks.load(settings.data, batch_size=32, seed=0, device="cpu")
    assert tuple(task.unlabelled.pixels.shape) == (60, 12, 12, 3)
    assert task.unlabelled.true is None
    assert len(task.train) == 1292
    assert any("passed over 1 .txt" in line for line in task.notes)
    facts = task.unlabelled.label(SAID.repeat(9, 1)[:60], labels="soft", confidence=0.3, balance=True, images_a_class=0, ratio=1)
    assert "correct" not in facts


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--unlabelled", "empty"], "--unlabelled: no pictures in 'empty'"),
        (["--unlabelled", "nowhere"], "--unlabelled: no folder at 'nowhere'"),
        (["--unlabelled", "empty", "--labelled", "0.1"], "choose one"),
        ([], "it needs --labelled 0.1, or --unlabelled DIR"),
        (["--labelled", "0.02"], "--labelled 0.02 of 54 images leaves 1 of 3 classes without a labelled one"),
        (["--labelled", "1"], "below 1"),
        (["--labelled", "0.1", "--augment", "randaugmnt"], "did you mean 'randaugment'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(Refused, match=message) as caught:
        run_program(*TINY_DATA, "--layers", "20", "--procedure", "noisy_student", *flags, "--out_dir", "run")
    assert "\n" not in str(caught.value)
    assert not Path("run").exists()
