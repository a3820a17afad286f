"""Matching, losses and average precision are those of torchvision and of cases computed by hand; a detector learns."""

import pytest
import torch
from promises import unchanged

import models
from models.layouts import default_boxes
from settings.arguments import parse
from tasks import load
from tasks.average_precision import Precision, average_precision, voc07
from tasks.boxes import CROWD, DIFFICULT, PLAIN, box_losses, decoded, detections, joined, matched

SIZES = ((38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1))


def random_targets(images: int = 4, rows: int = 6, classes: int = 3) -> torch.Tensor:
    """Boxes of random places and classes; the first image has none, the last one all."""
    targets = torch.zeros(images, rows, 6)
    corners = torch.rand(images, rows, 2, 2).sort(2).values
    targets[..., :2], targets[..., 2:4] = corners[:, :, 0], corners[:, :, 1] * 0.9 + 0.1
    targets[..., 4] = torch.randint(1, classes + 1, (images, rows))
    for image in range(images):
        targets[image, image * rows // (images - 1) :] = 0
    return targets


def random_outputs(images: int = 4, classes: int = 3) -> tuple[torch.Tensor, ...]:
    boxes = (4, 6, 6, 6, 4, 4)
    return tuple(torch.randn(images, n * each, *size) for each in (4, classes + 1) for n, size in zip(boxes, SIZES, strict=True))


@pytest.fixture(scope="module")
def torchvisions():
    from torchvision.models.detection import ssd300_vgg16

    with torch.device("meta"):
        return ssd300_vgg16(weights=None, weights_backbone=None, num_classes=4)


@pytest.mark.core
def test_boxes_are_matched_as_torchvision_matches_them(torchvisions):
    from torchvision.ops import box_iou

    targets, anchors = random_targets(), default_boxes(300)
    found = matched(anchors, targets)
    for rows, mine in zip(targets, found, strict=True):
        boxes = rows[rows[:, 4] > 0, :4]
        if len(boxes) == 0:
            assert (mine == -1).all()
            continue
        assert torch.equal(mine, torchvisions.proposal_matcher(box_iou(boxes, anchors)))
    assert (found >= 0).any(1).tolist() == [False, True, True, True]


@pytest.mark.core
def test_losses_are_torchvisions(torchvisions):
    """Smooth L1 of encoded boxes, cross-entropy with three negatives to one, both divided by the number of matches."""
    targets, outputs, anchors = random_targets(), random_outputs(), default_boxes(300)
    offsets, logits = joined(outputs)
    given = [{"boxes": rows[rows[:, 4] > 0, :4], "labels": rows[rows[:, 4] > 0, 4].long()} for rows in targets]
    found = list(matched(anchors, targets))
    heads = {"bbox_regression": offsets, "cls_logits": logits}
    theirs = torchvisions.compute_loss(given, heads, [anchors] * 4, found)
    boxes, labels, count = box_losses(outputs, targets, default_boxes(300))
    assert torch.allclose(boxes.sum() / count.sum(), theirs["bbox_regression"], rtol=1e-5)
    assert torch.allclose(labels.sum() / count.sum(), theirs["classification"], rtol=1e-5)
    assert boxes[0] == labels[0] == count[0] == 0


@pytest.mark.core
def test_crowds_are_matched_by_nobody_and_difficult_boxes_are():
    anchors, targets = default_boxes(300), random_targets(2)
    for mark, count in ((DIFFICULT, 6), (CROWD, 0)):
        targets[..., 5] = mark
        assert len(matched(anchors, targets)[1].unique()) - 1 == count


@pytest.mark.core
def test_targets_that_are_decoded_are_where_they_were():
    """Offsets that are the encoded targets give the boxes back, and the class that is sure its score."""
    targets, anchors = random_targets(), default_boxes(300)
    outputs = random_outputs()
    which = matched(anchors, targets)
    from tasks.boxes import CODER

    rows = targets[3, which[3].clamp_min(0)]
    wanted = CODER.encode_single(rows[:, :4], anchors)
    parts, start = [], 0
    for part in outputs[:6]:
        images, channels, height, width = part.shape
        end = start + channels // 4 * height * width
        maps = wanted[start:end].view(height, width, -1).permute(2, 0, 1)
        parts.append(maps.expand(images, -1, -1, -1))
        start = end
    boxes, scores = decoded((*parts, *outputs[6:]), default_boxes(300))
    assert torch.allclose(boxes[3][which[3] >= 0], rows[which[3] >= 0, :4], atol=1e-4)
    assert torch.allclose(scores, joined(outputs)[1].softmax(2)[..., 1:])


@pytest.mark.core
def test_detections_are_suppressed_and_ranked():
    found = detections(random_outputs(), default_boxes(300))
    from torchvision.ops import box_iou

    for each in found:
        assert 0 < len(each["scores"]) <= 100
        assert torch.equal(each["scores"], each["scores"].sort(descending=True).values)
        assert ((each["boxes"] >= 0) & (each["boxes"] <= 1)).all()
        overlap = box_iou(each["boxes"], each["boxes"]).fill_diagonal_(0)
        same = each["labels"][:, None] == each["labels"]
        assert (overlap[same] <= 0.45 + 1e-6).all()


def two_images() -> tuple[list[dict], list[torch.Tensor]]:
    """Class 1: a hit, the same box again, a difficult box, a hit; class 2: a box that is missed."""
    square, other, hard = [0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9], [0.0, 0.6, 0.3, 0.9]
    wanted = [torch.tensor([[*square, 1, PLAIN]]), torch.tensor([[*other, 1, PLAIN], [*hard, 1, DIFFICULT], [*square, 2, PLAIN]])]
    found = [
        {"boxes": torch.tensor([square, square]), "scores": torch.tensor([0.9, 0.8]), "labels": torch.tensor([1, 1])},
        {"boxes": torch.tensor([hard, other]), "scores": torch.tensor([0.7, 0.6]), "labels": torch.tensor([1, 1])},
    ]
    return found, wanted


@pytest.mark.core
def test_average_precision_by_hand():
    """Of class 1 precision is 1 up to recall 0.5 and 2/3 up to 1; class 2 has 0."""
    found, wanted = two_images()
    of_class_1 = (51 * 1 + 50 * 2 / 3) / 101  # COCO's 101 recalls
    means, each = average_precision(found, wanted)
    assert each == pytest.approx({1: 100 * of_class_1, 2: 0.0}, abs=1e-4)
    assert means == pytest.approx(dict.fromkeys(("mAP", "AP50", "AP75"), 50 * of_class_1), abs=1e-4)
    assert voc07(found, wanted) == pytest.approx((6 * 1 + 5 * 2 / 3) / 11 / 2)


@pytest.mark.core
def test_average_precision_of_nothing_is_0():
    nothing = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.long)}
    means, each = average_precision([nothing], [torch.zeros(0, 6)])
    assert (means, each) == ({"mAP": 0.0, "AP50": 0.0, "AP75": 0.0}, {})
    assert voc07([nothing], [torch.zeros(0, 6)]) == 0
    missed = torch.tensor([[0.1, 0.1, 0.5, 0.5, 1, PLAIN]])
    assert average_precision([nothing], [missed])[0]["mAP"] == voc07([nothing], [missed]) == 0


@pytest.mark.core
def test_the_meter_tells_losses_and_each_class():
    found, wanted = two_images()
    meter = Precision("cpu", lambda outputs: outputs, ["cat", "dog"])
    targets = torch.stack([torch.cat([rows, rows.new_zeros(3 - len(rows), 6)]) for rows in wanted])
    meter.add(found, targets, {"boxes": torch.tensor(1.0), "labels": torch.tensor(3.0)})
    read = meter.read()
    assert next(iter(read)) == "mAP"
    assert (read["loss"], read["boxes"], read["labels"], read["images"]) == (4, 1, 3, 2)
    assert list(read["classes"]) == ["dog", "cat"]
    assert [boxes for _, boxes in read["classes"].values()] == [1, 2]


def task_of(folder, *flags):
    settings = parse(["--dataset", "voc", "--data_dir", str(folder), "--arch", "ssd300_vgg16", *flags])
    return load(settings.data, batch_size=4, seed=settings.run.seed, device="cpu")


def test_a_detector_overfits_four_images(voc):
    task = task_of(voc, "--augment", "none", "--val_size", "0.5")
    torch.manual_seed(0)
    network = models.build("ssd300_vgg16(width=0.06)", classes=2).to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(network.parameters(), 0.003)
    for epoch in range(100):
        network.train()
        for inputs, targets in task.batches(epoch):
            optimiser.zero_grad()
            sum(task.losses(network(inputs), targets).values()).backward()
            optimiser.step()
        if epoch % 10 == 9:
            meter = task.meter("cpu")
            with torch.no_grad():
                for inputs, targets in task.ordered(task.train, 4):
                    outputs = network.eval()(inputs)
                    meter.add(outputs, targets, task.losses(outputs, targets))
            if (measures := meter.read())["AP50"] > 95:
                break
    assert len(task.train) == 4
    assert measures["AP50"] > 95
    assert measures["VOC07"] > 95


@pytest.mark.parametrize("augment", ["ssd", "none"])
def test_an_epoch_depends_on_seed_and_epoch_alone(voc, augment):
    task = task_of(voc, "--augment", augment)
    with unchanged():
        first = list(task.batches(0))
    torch.manual_seed(5)
    again, other = list(task.batches(0)), list(task.batches(1))
    for (inputs, targets), (twice, targets_twice) in zip(first, again, strict=True):
        assert torch.equal(inputs, twice)
        assert torch.equal(targets, targets_twice)
    assert not torch.equal(first[0][0], other[0][0])


def test_processes_share_a_batch_out(voc):
    task = task_of(voc)
    whole, parts = list(task.batches(2)), [list(task.batches(2, (rank, 2))) for rank in range(2)]
    for number, (inputs, targets) in enumerate(whole):
        assert torch.equal(inputs, torch.cat([part[number][0] for part in parts]))
        assert torch.equal(targets, torch.cat([part[number][1] for part in parts]))


def test_boxes_move_with_what_they_are_around(voc):
    """Without augmentation a box is around its colour; with it still, whatever was cut, mirrored and shrunk."""
    task = task_of(voc, "--augment", "none", "--normalise", "half")
    for inputs, targets in task.batches(0):
        for image, rows in zip(inputs * 127.5 + 127.5, targets, strict=True):
            last = rows[int((rows[:, 4] > 0).sum()) - 1]  # which lies over the others
            left, top, right, bottom, label = (last[:5] * torch.tensor([300, 300, 300, 300, 1])).round().int().tolist()
            inside = image[:, top + 6 : bottom - 6, left + 6 : right - 6].mean((1, 2))
            assert abs(float(inside[{"blue": 2, "red": 0}[task.classes[label - 1]]]) - 220) < 25


def test_images_of_each_class(voc):
    task = task_of(voc)
    chosen = task.of_each_class(task.sample(2), 1, 2)
    labels = torch.cat([targets[..., 4] for _, targets in chosen])
    assert all((labels == label).any() for label in (1, 2))
    assert len(labels) <= 2


def test_losses_of_images_add_up(voc):
    """The loss of an image is that of a batch of it alone."""
    task = task_of(voc)
    torch.manual_seed(0)
    outputs, targets = random_outputs(4, 2), torch.stack([rows for _, part in task.ordered(task.test, 4) for rows in part])
    each = task.image_losses(outputs, targets)
    for number in range(4):
        alone = task.losses(tuple(part[number : number + 1] for part in outputs), targets[number : number + 1])
        assert torch.allclose(each[number], sum(alone.values()))
