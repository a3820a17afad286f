"""The tasks: what is learned from which data set, by which loss, measured how."""

from settings.registry import DATASETS, TASKS
from tasks.task import Task


def task_of(dataset: str) -> type[Task]:
    """The class of the task that a data set is for. ValueError for an unknown data set."""
    return TASKS.get(DATASETS.get(dataset).task)


def load(data, *, batch_size: int, seed: int, device: str) -> Task:
    """The task of the data settings, its data on the device. Refused if the data is missing or not usable."""
    return task_of(data.dataset).load(data, batch_size=batch_size, seed=seed, device=device)


def outputs_of(data) -> int:
    """How many outputs a network for this data needs, found without reading the data itself. Refused if it is missing."""
    return task_of(data.dataset).outputs_of(data)


__all__ = ["Task", "load", "outputs_of", "task_of"]
