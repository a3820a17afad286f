"""This file holds the learning-rate schedules: each maps the progress of a run, 0 to 1, to a factor of --lr."""

import math
from typing import Annotated


def step(
    progress: float, *, drops: Annotated[tuple, "at most 1"] = (0.5, 0.75), factor: Annotated[float, "at most 1"] = 0.1
) -> float:
    """Times `factor` at each of `drops`, fractions of the run (Lin et al., 2020, arXiv 2006.07253: 150 and 225 of 300)."""
    return factor ** sum(progress >= drop for drop in drops)


def constant(progress: float) -> float:
    """No change, as in the KSC 2020 code."""
    return 1.0


def cosine(progress: float) -> float:
    """Loshchilov and Hutter, 2017 (arXiv 1608.03983): (1 + cos(pi * progress)) / 2."""
    return (1 + math.cos(math.pi * progress)) / 2
