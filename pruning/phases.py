"""A phase says when masks change.

It takes a step's `position`, counted in steps from the run's first one; `until`, the position that --prune_until names; and
`due`, 0 or, where --prune_freq has come round, how many times it has by then. It returns two bools: whether masks are updated
before this step, and whether they still move. A moving mask has the straight-through gradient, a fixed one is a plain product.
"""

import math
from typing import Annotated


def dynamic(position: int, until: int, due: int, *, rarer: float = 0.0) -> tuple[bool, bool]:
    """During training: masks are made anew at every --prune_freq up to --prune_until, then fixed; what was cut may return.

    `rarer` is the fraction by which the time from the start to an update grows from one update to the next: with 1 masks are
    made anew at the 1st, 2nd, 4th, 8th, ... time that --prune_freq comes round, with 0 at every time.
    """
    moving = position < until
    return moving and due > 0 and (rarer == 0 or _grown(due, rarer)), moving


def _grown(times: int, rarer: float) -> bool:
    """Say whether a power of 1 + rarer lies above times - 1 and not above `times`."""
    powers = [int(math.log(number, 1 + rarer) + 1e-9) for number in (times, times - 1) if number > 0]
    return times == 1 or powers[0] > powers[1]


def init(
    position: int, until: Annotated[int, "unused"], due: Annotated[int, "unused"]
) -> Annotated[tuple[bool, bool], "one cut"]:
    """Before the first step: one cut at initialisation, fixed from then on."""
    return position == 0, False


def after(position: int, until: int, due: Annotated[int, "unused"]) -> Annotated[tuple[bool, bool], "one cut"]:
    """Train dense up to --prune_until, one cut, fine-tune for the rest of the epochs."""
    return position == until, False


def iterative(
    position: int, until: int, due: Annotated[int, "unused"], *, rounds: Annotated[int, "count"] = 5
) -> Annotated[tuple[bool, bool], "what is cut stays cut"]:
    """Cut a part, train, cut more: so many rounds, evenly from the first step to --prune_until; what is cut stays cut."""
    return any(position == number * until // rounds for number in range(rounds)), False
