"""This file says which batches the steps of the optimiser learn from: one each or, with --accumulate, several."""

from collections.abc import Iterator
from itertools import islice

from settings.arguments import Settings
from tasks import Task
from tasks.mixing import mixed


def steps_of(task: Task, settings: Settings) -> int:
    """How many steps of the optimiser an epoch has, of which the last one may be of fewer batches."""
    return -(-task.steps // settings.training.accumulate)


def turns(run, epoch: int) -> Iterator[tuple]:
    """What an epoch learns from, as (step, part, inputs, targets); a batch is part (i, n): the i-th of the n of its step."""
    training, first = run.settings.training, run.first_step(epoch)
    batches = mixed(run.batches(epoch), training.mixup, run.settings.run.seed, epoch)
    batches = islice(batches, first * training.accumulate, None)
    for step in range(first, run.steps):
        number = min(training.accumulate, run.task.steps - step * training.accumulate)
        for index in range(number):
            yield step, (index, number), *next(batches)


def images_of(run, first: int = 0) -> int:
    """How many images an epoch learns from, from the step `first` on."""
    number = run.settings.training.accumulate
    return (min(run.steps * number, run.task.steps) - first * number) * run.task.batch


def groups_text(run) -> list[str]:
    """The line that says of --accumulate how many images a step is of, and the last one of an epoch; none without it."""
    number, last = run.settings.training.accumulate, run.task.steps % run.settings.training.accumulate
    if number == 1:
        return []
    end = f", the last one of an epoch of {last * run.task.batch}" if last else ""
    return [f"a step of the optimiser is of {min(number, run.task.steps) * run.task.batch} images{end}"]
