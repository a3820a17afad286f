"""This file measures detections by average precision."""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tasks.boxes import PLAIN
from tasks.meters import Losses

# a detection is right where it overlaps a box of its class by so much, the least that average precision is measured at
RIGHT = 0.5


class Precision(Losses):
    """A meter that also measures average precision. `detect` maps outputs to detections.

    Given the `names` of all classes, it tells the average precision of each class too.
    """

    def __init__(self, device, detect: Callable, names: Sequence[str] = ()):
        super().__init__(device)
        self.detect, self.names = detect, list(names)
        self.seen: list[tuple[dict, Tensor]] = []

    @torch.no_grad()
    def add(self, outputs, targets: Tensor, terms: dict[str, Tensor]) -> None:
        """Add a batch of outputs with their targets, and the terms of the loss by name."""
        super().add(outputs, targets, terms)
        found = [{name: value.cpu() for name, value in each.items()} for each in self.detect(outputs)]
        self.seen += zip(found, [rows[rows[:, 4] > 0] for rows in targets.cpu()], strict=True)

    def gather(self, team) -> None:
        super().gather(team)
        self.seen = [pair for part in team.every(self.seen) for pair in part]

    def read(self) -> dict:
        """Return the measures in %: "mAP" over the overlaps 0.5 to 0.95, "AP50", "AP75" and "VOC07", then those of `Losses`.

        With names also "classes", {name: [AP, boxes]} with the worst one first, "curves", {name: `eleven_points`}, and
        "confusions", which is empty.
        """
        found, wanted = [found for found, _ in self.seen], [rows for _, rows in self.seen]
        means, each = average_precision(found, wanted)
        read = {**means, "VOC07": 100 * voc07(found, wanted), **super().read()}
        if not self.names:
            return read
        rows = torch.cat(wanted) if wanted else torch.zeros(0, 6)
        counts = torch.bincount(rows[rows[:, 5] == PLAIN, 4].long(), minlength=len(self.names) + 1).tolist()
        table = {self.names[n - 1]: [each.get(n, 0.0), counts[n]] for n in range(1, len(self.names) + 1) if counts[n]}
        curves = {self.names[n - 1]: eleven_points(found, wanted, n) for n in range(1, len(self.names) + 1) if counts[n]}
        return read | {"classes": dict(sorted(table.items(), key=lambda item: item[1][0])), "confusions": {}, "curves": curves}


def average_precision(found: list[dict], wanted: list[Tensor]) -> tuple[dict[str, float], dict[int, float]]:
    """Return {"mAP", "AP50", "AP75"} in %, as COCO defines them, and the AP in % of each class, by its number.

    `found` are detections, `wanted` the rows of targets of each image. What is no plain box is COCO's crowd: detections of it
    count neither as right nor as wrong. A measure is 0 where there is no box of any class.
    """
    from torchmetrics.detection import MeanAveragePrecision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric = MeanAveragePrecision(backend="faster_coco_eval", class_metrics=True)
        metric.warn_on_many_detections = False
        truths = [
            {"boxes": rows[:, :4] * 1000, "labels": rows[:, 4].long(), "iscrowd": (rows[:, 5] != PLAIN).long()} for rows in wanted
        ]
        metric.update([{**each, "boxes": each["boxes"] * 1000} for each in found], truths)
        measured = metric.compute()
    means = {
        name: min(max(100 * float(measured[key]), 0.0), 100.0)
        for name, key in (("mAP", "map"), ("AP50", "map_50"), ("AP75", "map_75"))
    }
    each = zip(measured["classes"].reshape(-1).tolist(), measured["map_per_class"].reshape(-1).tolist(), strict=True)
    return means, {number: 100 * value for number, value in each if value >= 0}


def voc07(found: list[dict], wanted: list[Tensor]) -> float:
    """Return the mean over classes of the 11-point average precision at an overlap of 0.5 (Everingham et al., 2010, VOC 2007).

    Of each class that has boxes it is the mean, over the recalls 0, 0.1, ..., 1, of the best precision at that recall or a
    higher one. Each detection, the surest first, goes to the box that it overlaps most; a second one of a box is wrong, and one
    of a box that is not plain does not count. 0 where there is no box.
    """
    labels = sorted({int(label) for rows in wanted for label in rows[rows[:, 5] == PLAIN, 4]})
    scores = [sum(eleven_points(found, wanted, label)) / 11 for label in labels]
    return sum(scores) / len(scores) if scores else 0.0


def eleven_points(found: list[dict], wanted: list[Tensor], label: int) -> list[float]:
    """Return of one class the best precision at the recalls 0, 0.1, ..., 1 or a higher one, at an overlap of 0.5."""
    from torchvision.ops import box_iou

    ranked, boxes = [], 0
    for detected, rows in zip(found, wanted, strict=True):
        rows = rows[rows[:, 4] == label]
        boxes += int((rows[:, 5] == PLAIN).sum())
        mine = detected["labels"] == label
        scores, order = detected["scores"][mine].sort(descending=True, stable=True)
        overlaps = box_iou(detected["boxes"][mine][order], rows[:, :4])
        taken = set()
        for score, overlap in zip(scores.tolist(), overlaps, strict=True):
            best = int(overlap.argmax()) if len(rows) else -1
            if best < 0 or overlap[best] < RIGHT:
                ranked.append((score, False))
            elif rows[best, 5] == PLAIN:
                ranked.append((score, best not in taken))
                taken.add(best)
    right = torch.tensor([hit for _, hit in sorted(ranked, key=lambda pair: -pair[0])], dtype=torch.float64).cumsum(0)
    precision, recall = right / torch.arange(1, len(right) + 1), right / max(boxes, 1)
    points = [precision[recall >= tenth / 10 - 1e-9] for tenth in range(11)]
    return [float(part.max()) if len(part) else 0.0 for part in points]
