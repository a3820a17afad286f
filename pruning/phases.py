"""When masks change: a step's position in the run in; whether to update now, and whether masks are still moving, out.

`until` is the position that --prune_until names; `due` says whether --prune_freq has come round. A moving mask has the
straight-through gradient, a fixed one is a plain product.
"""

# phases in which what was cut stays cut
ONLY_MORE = ("iterative",)


def dynamic(position: int, until: int, due: bool) -> tuple[bool, bool]:
    """During training: masks are made anew at every --prune_freq up to --prune_until, then fixed; what was cut may return."""
    moving = position < until
    return moving and due, moving


def init(position: int, until: int, due: bool) -> tuple[bool, bool]:
    """Before the first step: one cut at initialisation, fixed from then on."""
    return position == 0, False


def after(position: int, until: int, due: bool) -> tuple[bool, bool]:
    """Train dense up to --prune_until, one cut, fine-tune for the rest of the epochs."""
    return position == until, False


def iterative(position: int, until: int, due: bool, *, rounds: int = 5) -> tuple[bool, bool]:
    """Cut a part, train, cut more: so many rounds, evenly from the first step to --prune_until; what is cut stays cut."""
    return any(position == number * until // rounds for number in range(rounds)), False
