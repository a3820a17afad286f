"""These tests check lines of the summary by hand."""

import pytest

from runs.speed_lines import latency_line, speed_range, too_wide


def row(compact, dense):
    """A row of latencies whose quartiles, in ms, are these; the median is their mean."""
    networks = {"compact": compact, "dense": dense}
    made = {name: {"ms": sum(middle) / 2, "middle_ms": list(middle), "rounds": 9} for name, middle in networks.items()}
    return {"engine": "PyTorch", "batch": 1, **made, "where": "cpu, 2 threads"}


def test_a_latency_is_told_with_its_spread():
    told = latency_line(row((1.0, 1.2), (2.0, 2.4)), 6.4)
    assert told == (
        "result latency: PyTorch, batch 1: 1.10 ms, dense 2.20 ms, 2.00 times as fast (6.40 in MACs); cpu, 2 threads; "
        "the middle half of 9 rounds: 1.00 to 1.20 ms, dense 2.00 to 2.40 ms"
    )


def test_a_spread_that_means_nothing_is_named():
    busy = row((1.0, 4.0), (2.0, 4.0))
    assert speed_range(busy) == (0.5, 4.0)
    assert too_wide(busy)
    assert latency_line(busy, 6.4).endswith(": 0.50 to 4.00 times as fast, TOO WIDE to mean anything, the machine is busy")


@pytest.mark.parametrize(("compact", "wide"), [((1.0, 1.9), False), ((1.0, 2.1), True)])
def test_wide_is_more_than_a_factor_of_two(compact, wide):
    assert too_wide(row(compact, (3.0, 3.0))) is wide


def test_a_result_of_before_has_no_spread():
    old = row((1.0, 4.0), (2.0, 4.0))
    for network in ("compact", "dense"):
        del old[network]["middle_ms"], old[network]["rounds"]
    assert latency_line(old, 6.4).endswith("times as fast (6.40 in MACs); cpu, 2 threads")
