"""A phase says when masks change.

It takes `until`, the position that --prune_until names, and `due`, the positions at which --prune_freq comes round, in
rising order; positions are counted in steps from the run's first one. It returns the positions before whose step masks are
made, also in rising order, and the position up to which they move. A position that stands there several times has as many
rounds before its step, in each of which scores are measured anew. A moving mask has the straight-through gradient, a fixed
one is a plain product.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Annotated

from pruning.times import Mapped


def dynamic(until: int, due: Sequence[int], *, rarer: float = 0.0) -> tuple[Sequence[int], int]:
    """During training: masks are made anew at every --prune_freq up to --prune_until, then fixed; what was cut may return.

    `rarer` is the fraction by which the time from the start to an update grows from one update to the next: with 1 masks are
    made anew at the 1st, 2nd, 4th, 8th, ... time that --prune_freq comes round, with 0 at every time.
    """
    times = range(1, bisect_left(due, until) + 1)
    chosen = times if rarer == 0 else list(_growing(len(times), rarer))
    return Mapped(chosen, lambda time: due[time - 1]), until


def _growing(last: int, rarer: float):
    """Yield the times up to `last` of which each is the first one that is not below a power of 1 + rarer."""
    time = 1
    while time <= last:
        yield time
        power = int(math.log(time, 1 + rarer) + 1e-9) + 1
        time = max(time + 1, math.ceil((1 + rarer) ** power - 1e-6 * time)) if power * math.log(1 + rarer) < 700 else last + 1


def init(
    until: Annotated[int, "unused"],
    due: Annotated[Sequence[int], "unused"],
    *,
    rounds: Annotated[int, "at least 1", "at most 1000"] = 1,
) -> Annotated[tuple[Sequence[int], int], "one cut", "what is cut stays cut"]:
    """Before the first step: one cut at initialisation, made in `rounds` rounds of scoring and cutting, fixed from then on."""
    return [0] * rounds, 0


def after(until: int, due: Annotated[Sequence[int], "unused"]) -> Annotated[tuple[Sequence[int], int], "one cut"]:
    """Train dense up to --prune_until, one cut, fine-tune for the rest of the epochs."""
    return [until], 0


def iterative(
    until: int,
    due: Annotated[Sequence[int], "unused"],
    *,
    rounds: Annotated[int, "at least 1", "at most 1000"] = 5,
    start: Annotated[float, "below 1"] = 0.0,
) -> Annotated[tuple[Sequence[int], int], "what is cut stays cut"]:
    """Cut a part, train, cut more: so many rounds, evenly from the first step to --prune_until; what is cut stays cut.

    The first cut is where the fraction `start` of the steps up to --prune_until is done; up to there training is dense.
    """
    first = int(start * until + 1e-6)
    return sorted({first + number * (until - first) // rounds for number in range(rounds)}), 0
