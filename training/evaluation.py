"""Accuracy and loss over images."""

import torch
import torch.nn.functional as F

from models import Network
from tasks import images as data
from tasks.classification import Meter
from training.team import Team

BATCH = 500


@torch.no_grad()
def evaluate(
    model: Network, dataset: data.Dataset, images: data.Images, predict, batches: int | None = None, team: Team | None = None
) -> dict:
    """Accuracy and loss over a split, in evaluation mode, masks in force; `batches` ends it early.

    `predict` maps pixels to logits by this model; the processes of a team take turns.
    """
    team = team or Team()
    model.eval()
    meter = Meter(dataset.device)
    for number, (pixels, labels) in enumerate(dataset.ordered(images, BATCH)):
        if number == batches:
            break
        if number % team.size == team.rank:
            logits = predict(pixels)
            meter.add(logits, labels, F.cross_entropy(logits.float(), labels))
    meter.gather(team)
    return meter.read()
