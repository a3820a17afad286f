"""Evaluation measures a network over a split of the data, with its masks in force."""

from collections.abc import Callable, Sequence

import torch

from models.network import Network
from tasks import Task
from training.team import Team

# images at once: at most so many, and so many pixels unless a training batch, which takes more memory, has more
MOST, PIXELS = 500, 500 * 32 * 32


def images_at_once(task: Task) -> int:
    """Return how many images are evaluated at once, so that evaluation never takes more memory than training does."""
    _, height, width = task.inputs
    return min(MOST, max(task.batch, PIXELS // (height * width), 1))


@torch.no_grad()
def evaluate(
    model: Network,
    task: Task,
    split,
    predict: Callable,
    device: str,
    batches: int | None = None,
    team: Team | None = None,
    classes: Sequence[str] = (),
) -> dict:
    """Measure a network over a split of the task's data, in evaluation mode, and return the task's measures.

    `predict` maps inputs to the model's outputs; `batches` ends it early. The processes of a team take turns, a batch each.
    Where the names of the `classes` are given, the measures are told for each of them too.
    """
    team = team or Team()
    model.eval()
    meter = task.meter(device, classes)
    for number, (inputs, targets) in enumerate(task.ordered(split, images_at_once(task))):
        if number == batches:
            break
        if number % team.size == team.rank:
            outputs = predict(inputs)
            meter.add(outputs, targets, task.losses(outputs, targets))
    meter.gather(team)
    return meter.read()
