"""This file knows of classes what classification asks: their weights in the loss, their names, and those without images."""

import unicodedata

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.images import Images


def class_weights(train: Images, classes: int) -> Tensor:
    """Return a weight for each class, images / (classes x images of the class): their mean over the training images is 1."""
    counts = torch.bincount(train.labels, minlength=classes).clamp_min(1)
    return len(train) / (classes * counts.float())


def weighted_losses(weights: Tensor, outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of each image, its label smoothed, times the weight of its class, (images,)."""
    return F.cross_entropy(outputs, targets, reduction="none", label_smoothing=smoothing) * weights.to(outputs.dtype)[targets]


def composed(names: list[str]) -> list[str]:
    """Return names in Unicode's composed form, in which equal ones are equal whatever system wrote them."""
    return [unicodedata.normalize("NFC", name) for name in names]


def without_images(held_out: Images, classes: list[str]) -> list[str]:
    """Return a note that names the classes without a held-out image, if there are any."""
    missing = [name for number, name in enumerate(classes) if not (held_out.labels == number).any()]
    named = f"{', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}"
    return [f"{len(missing)} of {len(classes)} classes have no held-out image: {named}"] if missing else []
