"""Evaluation measures a network over a split of the data, with its masks in force."""

from collections.abc import Callable, Sequence
from itertools import islice

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


@torch.no_grad()
def probabilities(run) -> torch.Tensor:
    """Return what the network of a run, in evaluation, says of the unlabelled images, (images, classes) in float32 on the CPU."""
    few = 2 if run.settings.run.dry_run else None
    run.model.eval()
    said = []
    for inputs, _ in islice(run.task.unlabelled_batches(images_at_once(run.task)), few):
        run.stop.check("while images were labelled")
        said.append(run.predict(inputs).float().softmax(1))
    found = torch.cat(said)
    run.team.same_([found])
    return found.cpu()
