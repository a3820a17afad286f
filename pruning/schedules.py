"""A schedule says how much of --prune_rate is due at an update of the masks.

It takes the update's progress, the fraction of the run that is done, 0 to 1, and the progress of all updates, in rising
order; it returns the fraction of the rate that is due. A schedule that has a third parameter, `rate`, gets the fraction
that is removed in the end. Rounds that are all made before the first step count as a run of their own: the n-th of N has the
progress n / N.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Annotated


def constant(progress: float, updates: Sequence[float]) -> float:
    """The whole rate from the first mask on."""
    return 1.0


def cubic(progress: float, updates: Sequence[float], *, reach: Annotated[float, "at most 1"] = 0.5) -> float:
    """Zhu and Gupta, 2017 (arXiv 1710.01878): 1 - (1 - progress / reach)^3.

    The rate is whole at the last update by `reach` of the run, so that it is reached however few updates there are.
    """
    whole = updates[max(bisect_right(updates, reach + 1e-9) - 1, 0)]
    return 1.0 if progress >= whole else 1 - (1 - progress / whole) ** 3


def linear(progress: float, updates: Sequence[float]) -> float:
    """Equal parts: the n-th of N updates has n / N of the rate."""
    return bisect_right(updates, progress + 1e-9) / len(updates)


def exponential(progress: float, updates: Sequence[float], rate: float) -> float:
    """Tanaka et al., 2020 (arXiv 2006.05467): after the n-th of N updates (1 - rate)^(n / N) is left."""
    done = linear(progress, updates)
    return (1 - (1 - rate) ** done) / rate if 0 < done < 1 and rate > 0 else done
