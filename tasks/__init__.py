"""This package holds the tasks: a task says what is learned from a data set, by which loss, and how that is measured."""

from settings.meaning import task_of as name_of_task
from settings.registry import DATASETS, NETWORKS, TASKS
from tasks.task import Said, Task


def task_of(dataset: str) -> type[Task]:
    """Return the class of the task that a data set is for; raises ValueError for an unknown data set."""
    return TASKS.get(name_of_task(DATASETS.entry(dataset)))


def task_of_network(arch: str) -> type[Task]:
    """Return the class of the task that a network is for; raises ValueError for an unknown network."""
    return TASKS.get(name_of_task(NETWORKS.entry(arch)))


def load(data, *, batch_size: int, seed: int, device: str, quiet: bool = True) -> Task:
    """Read the data that the settings name and return its task, with the data on `device`.

    Not `quiet`, a bar on stderr shows how far a long reading is. Refused if the data is missing or not usable.
    """
    return task_of(data.dataset).load(data, batch_size=batch_size, seed=seed, device=device, quiet=quiet)


def load_test(data, *, device: str, quiet: bool = True) -> Task:
    """Read only the test part of the data that the settings name, otherwise as `load` does."""
    return task_of(data.dataset).load_test(data, device=device, quiet=quiet)


def outputs_of(data) -> int:
    """Return how many outputs a network for this data needs, without reading the images. Refused if the data is missing."""
    return task_of(data.dataset).outputs_of(data)


def inputs_of(data) -> tuple[int, int, int]:
    """Return the shape of an input of this data, (channels, height, width), without reading the images."""
    return task_of(data.dataset).inputs_of(data)


__all__ = ["Said", "Task", "inputs_of", "load", "load_test", "outputs_of", "task_of", "task_of_network"]
