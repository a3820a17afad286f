"""Each data set is a source of images for a task that exists."""

import pytest

from settings.meaning import task_of
from settings.registry import DATASETS, TASKS
from tasks.images import Source

pytestmark = pytest.mark.core


@pytest.mark.parametrize("name", DATASETS.entries)
def test_it_is_a_source_for_a_task(name):
    source = DATASETS.get(name)
    assert issubclass(source, Source)
    TASKS.check(task_of(DATASETS.entry(name)))
