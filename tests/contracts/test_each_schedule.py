"""Each schedule of pruning trains and resumes, and answers from its arguments alone. Its options are in tests/pruning."""

import inspect

import pytest
from promises import PRUNED, trains_and_resumes, unchanged

from settings.registry import SCHEDULES

pytestmark = pytest.mark.core


@pytest.mark.parametrize("name", SCHEDULES.entries)
def test_it_trains_and_resumes(tmp_path, monkeypatch, name):
    trains_and_resumes(tmp_path, monkeypatch, *PRUNED, "--prune_schedule", name, "--prune_freq", "1it")


@pytest.mark.parametrize("name", SCHEDULES.entries)
def test_it_rises_to_the_whole_rate_from_its_arguments_alone(name):
    schedule, updates = SCHEDULES.get(name), [number / 10 for number in range(8)]
    rate = {"rate": 0.9} if "rate" in inspect.signature(schedule).parameters else {}
    with unchanged():
        first, second = ([schedule(progress, updates, **rate) for progress in updates] for _ in range(2))
    assert first == second == sorted(first)
    assert 0 <= first[0] <= first[-1] == 1
