"""How the rate grows: progress in [0, 1] of the run in, the fraction of --prune_rate due now out."""


def constant(progress: float, interval: float) -> float:
    """The whole rate from the first mask on."""
    return 1.0


def cubic(progress: float, interval: float, *, reach: float = 0.5) -> float:
    """Zhu and Gupta, 2017 (arXiv 1710.01878): 1 - (1 - progress / reach)^3.

    `interval` is the progress between two updates: the rate is whole at the last update by `reach` of the run, so
    that it is reached however few epochs there are.
    """
    last = int(reach / interval + 1e-9) * interval
    return 1.0 if progress >= last - 1e-9 else 1 - (1 - progress / last) ** 3
