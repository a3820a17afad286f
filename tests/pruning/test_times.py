"""Times of a run are computed; these tests list them, and compare."""

import time

import pytest

from pruning.phases import dynamic
from pruning.schedules import cubic, linear
from pruning.times import Due, Mapped, numbers

pytestmark = pytest.mark.core


@pytest.mark.parametrize("every", [1, 2, 3, 7, 9])
@pytest.mark.parametrize("by_epochs", [True, False])
def test_due_times_are_those_of_a_search(every, by_epochs):
    epochs, steps = 10, 7
    if by_epochs:
        wanted = [epoch * steps for epoch in range(epochs) if epoch % every == 0]
    else:
        wanted = [epoch * steps + step for epoch in range(epochs) for step in range(steps) if (step + 1) % every == 0]
    due = Due(epochs, steps, every, by_epochs)
    assert list(due) == wanted
    assert len(due) == len(wanted)
    assert [position for position in range(epochs * steps) if numbers(due, position)] == wanted
    assert [list(numbers([0, 0, 3, 3, 3, 5], item)) for item in range(6)] == [[0, 1], [], [], [2, 3, 4], [], [5]]


def test_many_times_cost_nothing():
    began = time.perf_counter()
    positions, _ = dynamic(80_000_000, Due(1_000_000, 88, 1, False))
    progress = Mapped(positions, lambda position: position / 88_000_000)
    assert len(positions) == 80_000_000
    assert linear(0.25, progress) == pytest.approx(0.25 * 88 / 80)
    assert cubic(0.1, progress) == pytest.approx(1 - 0.8**3, abs=1e-6)
    assert time.perf_counter() - began < 1
