"""This file turns the maps of a detector into losses and into detections (SSD: Liu et al., 2016, arXiv 1512.02325).

Targets are one tensor, (images, rows, 6): left, top, right and bottom as fractions of the image's sides, the class from 1 on,
and a mark. Rows of class 0 are empty, since images have different numbers of boxes. `anchors` are the default boxes in such
fractions, (boxes, 4), of which a network with fewer sources has the first ones.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms, box_iou

# what the last number of a target says: a difficult box is trained, but misses and hits do not count; a crowd is not trained
PLAIN, DIFFICULT, CROWD = 0, 1, 2
OVERLAP, NEGATIVES = 0.5, 3
LEAST, SAME, CANDIDATES, MOST = 0.01, 0.45, 400, 100
CODER = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))


def joined(outputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Return the offsets of all default boxes, (images, boxes, 4), and their logits, (images, boxes, 1 + classes).

    `outputs` are the maps of a detector: offsets, then logits, of each of its sources.
    """
    half = len(outputs) // 2
    logits = outputs[half].shape[1] * 4 // outputs[0].shape[1]
    return _as_rows(outputs[:half], 4), _as_rows(outputs[half:], logits)


def _as_rows(maps: tuple[Tensor, ...], numbers: int) -> Tensor:
    """Put maps of (images, boxes * numbers, height, width) one behind the other, as (images, all boxes, numbers)."""
    parts = [part.unflatten(1, (-1, numbers)).permute(0, 3, 4, 1, 2).flatten(1, 3) for part in maps]
    return torch.cat(parts, 1)


def _for_each(anchors: Tensor, offsets: Tensor) -> Tensor:
    """Repeat the default boxes for each image of (images, boxes, 4) offsets: (images * boxes, 4)."""
    return anchors.expand(offsets.shape[0], -1, -1).flatten(0, 1)  # len() would fix the number of images in an export


def matched(anchors: Tensor, targets: Tensor) -> Tensor:
    """Return which target each default box is to find, (images, boxes), -1 for the background.

    It is the one that it overlaps most, if the intersection over union is at least 0.5; and of each target the default box
    that overlaps it most is to find it in any case. Crowds are nobody's.
    """
    images, rows = targets.shape[:2]
    if rows == 0:
        return torch.full((images, len(anchors)), -1, device=targets.device)
    real = (targets[..., 4] > 0) & (targets[..., 5] != CROWD)
    overlaps = box_iou(targets[..., :4].reshape(-1, 4), anchors).view(images, rows, -1).masked_fill(~real[..., None], -1)
    most, which = overlaps.max(1)
    best = overlaps.max(2).indices
    numbers = torch.where(real, torch.arange(rows, device=targets.device), -1)
    forced = torch.full_like(which, -1).scatter_reduce(1, best, numbers, "amax")
    return torch.where(forced >= 0, forced, torch.where(most >= OVERLAP, which, -1))


def box_losses(outputs: tuple[Tensor, ...], targets: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return of each image the loss of its boxes, that of its classes, and how many default boxes found one, (images,) each.

    The boxes' loss is smooth L1 of the encoded offsets. That of the classes is the cross-entropy of the boxes that found one
    and of the background where it is worst, three times as many (hard-negative mining).
    """
    offsets, logits = (part.float() if part.dtype in (torch.bfloat16, torch.float16) else part for part in joined(outputs))
    anchors = anchors[: offsets.shape[1]].to(offsets.dtype)
    targets = targets.to(offsets.dtype)
    with torch.no_grad():
        which = matched(anchors, targets)
        found = which >= 0
        rows = F.pad(targets, (0, 0, 0, 1)).gather(1, which.clamp_min(0)[..., None].expand(-1, -1, 6))
        # boxes of the background stand for themselves, so that their offsets are 0 and finite
        wanted = torch.where(found[..., None], rows[..., :4], anchors)
        wanted = CODER.encode_single(wanted.flatten(0, 1), _for_each(anchors, offsets)).view_as(offsets)
        labels = torch.where(found, rows[..., 4], 0).long()
    of_boxes = (F.smooth_l1_loss(offsets, wanted, reduction="none").sum(2) * found).sum(1)
    each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    with torch.no_grad():
        order = each.masked_fill(found, -torch.inf).argsort(dim=1, descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
        counted = found | (rank < NEGATIVES * found.sum(1, keepdim=True))
    return of_boxes, (each * counted).sum(1), found.sum(1)


def decoded(outputs: tuple[Tensor, ...], anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the boxes, (images, boxes, 4), and their scores, (images, boxes, classes), before any is suppressed.

    Boxes are left, top, right and bottom as fractions of the image's sides; scores are probabilities without the background.
    """
    offsets, logits = (part.float() for part in joined(outputs))
    anchors = anchors[: offsets.shape[1]]
    boxes = CODER.decode_single(offsets.flatten(0, 1), _for_each(anchors, offsets)).view_as(offsets)
    return boxes.clamp(0, 1), logits.softmax(2)[..., 1:]


@torch.no_grad()
def detections(outputs: tuple[Tensor, ...], anchors: Tensor) -> list[dict[str, Tensor]]:
    """Return what is detected in each image: {"boxes": (n, 4) fractions, "scores": (n,), "labels": (n,) from 1 on}, best first.

    Of each class the 400 default boxes with the highest scores above 0.01 go through non-maximum suppression at an
    intersection over union of 0.45; the best 100 of all classes are left.
    """
    found = []
    for boxes, score in zip(*decoded(outputs, anchors), strict=True):
        score, place = score.topk(min(CANDIDATES, len(score)), 0)
        above = score > LEAST
        labels = torch.arange(1, score.shape[1] + 1, device=score.device).expand_as(score)[above]
        score, chosen = score[above], boxes[place[above]]
        kept = batched_nms(chosen, score, labels, SAME)[:MOST]
        found.append({"boxes": chosen[kept], "scores": score[kept], "labels": labels[kept]})
    return found
