"""A phase says when masks change.

It takes a step's `position`, counted in steps from the run's first one; `until`, the position that --prune_until names; and
`due`, whether --prune_freq has come round. It returns two bools: whether masks are updated before this step, and whether
they still move. A moving mask has the straight-through gradient, a fixed one is a plain product.
"""

from typing import Annotated


def dynamic(position: int, until: int, due: bool) -> tuple[bool, bool]:
    """During training: masks are made anew at every --prune_freq up to --prune_until, then fixed; what was cut may return."""
    moving = position < until
    return moving and due, moving


def init(
    position: int, until: Annotated[int, "unused"], due: Annotated[bool, "unused"]
) -> Annotated[tuple[bool, bool], "one cut"]:
    """Before the first step: one cut at initialisation, fixed from then on."""
    return position == 0, False


def after(position: int, until: int, due: Annotated[bool, "unused"]) -> Annotated[tuple[bool, bool], "one cut"]:
    """Train dense up to --prune_until, one cut, fine-tune for the rest of the epochs."""
    return position == until, False


def iterative(
    position: int, until: int, due: Annotated[bool, "unused"], *, rounds: int = 5
) -> Annotated[tuple[bool, bool], "what is cut stays cut"]:
    """Cut a part, train, cut more: so many rounds, evenly from the first step to --prune_until; what is cut stays cut."""
    return any(position == number * until // rounds for number in range(rounds)), False
