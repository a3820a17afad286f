"""This file holds the images without labels that a noisy student learns from, and what its teacher takes them for."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.shapes import TENSOR
from settings.schema import Record, Unfit, check, whole
from tasks.mixing import Mixed
from tasks.views import Augmentation, Views

KEPT = Record({"images": TENSOR, "targets": TENSOR, "ratio": whole(1)})


@dataclass(frozen=True)
class PseudoLabels:
    """The labels that a teacher has given: `targets` are classes, (n,), or probabilities, (n, classes), of all n images.

    Used are these `images`, (used,) numbers, of which one may be there several times. A batch holds `ratio` of them for each
    labelled image.
    """

    images: Tensor
    targets: Tensor
    ratio: int

    def order(self, views: int, generator: torch.Generator) -> Tensor:
        """Return so many rows of `images` in a random order, (views,): each row once before one is there again."""
        rounds = -(-views // len(self.images))
        return torch.cat([torch.randperm(len(self.images), generator=generator) for _ in range(rounds)])[:views]


class Unlabelled:
    """Images whose labels no training reads: `pixels` are bytes (n, height, width, channels).

    `true` are their classes, (n,), where these are known; they serve to measure how many pseudo-labels are right, and nothing
    else. `pseudo` is what the last teacher took the images for, None before there was one.
    """

    def __init__(self, pixels: Tensor, true: Tensor | None = None):
        self.pixels, self.true = pixels, true
        self.pseudo: PseudoLabels | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def label(
        self, probabilities: Tensor, *, labels: str, confidence: float, balance: bool, images_a_class: int, ratio: int
    ) -> dict:
        """Take the first images for what the teacher's `probabilities`, (images, classes), say: 'soft' or 'hard' `labels`.

        `choose` says which images are used; `images_a_class` of 0 is an equal share of all. Returns how many images there
        are, how many passed the filter, how many are used, counting repeats, of how many classes, and, where it is known, how
        many % of the pseudo-labels that passed are right. ValueError where none passes.
        """
        best, kinds = probabilities.max(1)
        share = images_a_class or max(len(probabilities) // probabilities.shape[1], 1)
        passed, chosen = choose(probabilities, confidence, share if balance else 0)
        if not len(passed):
            raise ValueError(f"no unlabelled image has a confidence above {confidence:g}: the largest is {float(best.max()):.3f}")
        targets = kinds if labels == "hard" else probabilities
        self.pseudo = PseudoLabels(*(part.to(self.pixels.device) for part in (chosen, targets)), ratio)
        facts = {"unlabelled": len(probabilities), "passed": len(passed), "used": len(chosen)}
        facts["of_classes"] = len(kinds[chosen].unique())
        if self.true is not None:
            right = (kinds[passed] == self.true[: len(probabilities)].cpu()[passed]).double().mean()
            facts["correct"] = round(100 * float(right), 4)
        return facts

    def views(self, labelled: int, augmentation: Augmentation, generator: torch.Generator) -> tuple[Views, Tensor]:
        """Return the views that go with so many labelled images, in their order, and the target of each."""
        rows = self.pseudo.order(labelled * self.pseudo.ratio, generator)
        views = Views(self.pixels, self.pseudo.images[rows.to(self.pixels.device)].cpu(), augmentation, generator)
        return views, self.pseudo.targets[views.order]

    def plain(self) -> dict:
        """Return the pseudo-labels as a checkpoint keeps them; empty where there are none."""
        pseudo = self.pseudo
        if pseudo is None:
            return {}
        return {"images": pseudo.images.cpu(), "targets": pseudo.targets.cpu(), "ratio": pseudo.ratio}

    def take(self, saved, classes: int) -> None:
        """Go on with the pseudo-labels of a checkpoint. Unfit, a ValueError, where they are not of these images and classes."""
        check(saved, KEPT, "pseudo_labels")
        images, targets = saved["images"], saved["targets"]
        if images.dtype != torch.int64 or images.dim() != 1 or not len(images):
            raise Unfit("pseudo_labels.images are no numbers of images")
        if images.min() < 0 or images.max() >= len(self) or targets.shape[:1] != (len(self),):
            raise Unfit(f"pseudo_labels are of other unlabelled images than these {len(self)}")
        soft = targets.dtype == torch.float32 and targets.shape[1:] == (classes,)
        hard = targets.dtype == torch.int64 and targets.dim() == 1
        if not (soft or hard) or not (targets >= 0).all() or not (targets <= (1 if soft else classes - 1)).all():
            raise Unfit("pseudo_labels.targets are neither classes nor probabilities")
        self.pseudo = PseudoLabels(images.to(self.pixels.device), targets.to(self.pixels.device), saved["ratio"])


def choose(probabilities: Tensor, confidence: float, images_a_class: int) -> tuple[Tensor, Tensor]:
    """Return the images whose largest probability is above `confidence`, and those of them that are used, (n,) numbers each.

    Used are `images_a_class` of each class that an image was taken for, those of the largest probability first; where fewer
    have passed, they are repeated in turns, from the surest on (Xie et al., 2020, arXiv 1911.04252, who repeat at random). With
    0 images a class all that have passed are used once. Equal probabilities are ranked by number.
    """
    best, kinds = probabilities.max(1)
    passed = (best > confidence).nonzero().squeeze(1)
    if not images_a_class:
        return passed, passed
    chosen = []
    for kind in range(probabilities.shape[1]):
        members = passed[kinds[passed] == kind]
        if len(members):
            ranked = members[best[members].argsort(descending=True, stable=True)]
            chosen.append(ranked[torch.arange(images_a_class) % len(ranked)])
    return passed, torch.cat([passed[:0], *chosen])


def terms(loss: Callable, outputs: Tensor, targets, smoothing: float = 0.0) -> dict[str, Tensor]:
    """Return the terms of the loss of a batch by name; `loss` maps outputs and labels to a mean.

    Of images that were mixed it is that of both labels in their shares.

    Where the targets are a pair, labels of the first images and pseudo-labels of all others, these have a cross-entropy of their
    own: its mean, times the number of pseudo-labels for each label. So it is the sum over both, divided by the labels.
    `smoothing` is that of the labels, by which these are smoothed too.
    """
    if isinstance(targets, Mixed):
        return {"cross_entropy": targets.mean(loss(outputs, targets.labels), loss(outputs, targets.others))}
    if not isinstance(targets, tuple):
        return {"cross_entropy": loss(outputs, targets)}
    labels, guessed = targets
    guesses = F.cross_entropy(outputs[len(labels) :], guessed, label_smoothing=smoothing) * (len(guessed) / len(labels))
    return {"cross_entropy": loss(outputs[: len(labels)], labels), "pseudo_labels": guesses}
