"""A schedule says how much of --prune_rate is due at an update of the masks.

It takes the update's progress, the fraction of the run that is done, 0 to 1, and the list of the progress of all updates;
it returns the fraction of the rate that is due.
"""


def constant(progress: float, updates: list[float]) -> float:
    """The whole rate from the first mask on."""
    return 1.0


def cubic(progress: float, updates: list[float], *, reach: float = 0.5) -> float:
    """Zhu and Gupta, 2017 (arXiv 1710.01878): 1 - (1 - progress / reach)^3.

    The rate is whole at the last update by `reach` of the run, so that it is reached however few updates there are.
    """
    whole = max((update for update in updates if update <= reach + 1e-9), default=updates[0])
    return 1.0 if progress >= whole else 1 - (1 - progress / whole) ** 3


def linear(progress: float, updates: list[float]) -> float:
    """Equal parts: the n-th of N updates has n / N of the rate."""
    return sum(update <= progress + 1e-9 for update in updates) / len(updates)
