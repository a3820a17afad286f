"""This file meets budgets: how much may be left, said as MACs or parameters after removal instead of as a rate."""

from collections.abc import Callable

import torch
from torch import Tensor

from models import Network
from pruning.accounting import count, positions, removed

Keep = dict[str, Tensor]


class Budget:
    """A fraction of the whole network's `what`, "macs" or "parameters", that removal may leave.

    `search` finds the lowest threshold that meets it, then takes single decisions back that still fit.
    """

    # a threshold that takes many channels at once may fall short by more: then single decisions are taken back
    NEAR, TRIES = 0.005, 64

    def __init__(self, network: Network, what: str, image_size: int):
        self.network, self.what, self.pixels = network, what, positions(network, image_size)
        self.whole = getattr(count(network, self.pixels), what)

    def share(self, kept: Keep) -> float:
        """What would be left, as a fraction of the whole; `kept` is of bools on the CPU."""
        return getattr(removed(self.network, kept, self.pixels), self.what) / self.whole

    def search(self, choose: Callable[[int], Keep], spread: Callable[[Keep], Keep], total: int, left: float) -> Keep:
        """The decisions to keep. `choose(k)` cuts k of `total`, or raises ValueError where so many may not go.

        Where even the most that may go leaves more, that is the answer.
        """
        most = _first(lambda k: not _possible(choose, k), total) - 1
        cut = _first(lambda k: self.share(spread(choose(k))) <= left, most)
        keep, before = choose(cut), choose(max(cut - 1, 0))
        share = self.share(spread(keep))
        for k in range(cut - 2, max(cut - 2 - self.TRIES, -1), -1):
            if share >= left - self.NEAR:
                break
            back = choose(k)
            more = {name: keep[name] | (back[name] & ~before[name]) for name in keep}
            if (larger := self.share(spread(more))) <= left:
                keep, share = more, larger
            before = back
        return keep


def _first(holds: Callable[[int], bool], end: int) -> int:
    """The smallest k in 0..end for which this holds, or `end`; once it holds it goes on holding."""
    low, high = 0, end
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _possible(choose: Callable[[int], Keep], k: int) -> bool:
    try:
        choose(k)
    except ValueError:
        return False
    return True


def round_up(scores: Keep, keep: Keep, multiple: int) -> Keep:
    """Keep the next best of each layer until its number is a multiple, or all of it; an empty layer stays empty."""
    rounded = {}
    for name, score in scores.items():
        wanted = min(-(-int(keep[name].sum()) // multiple) * multiple, len(score))
        worst_first = score.argsort(stable=True)
        rounded[name] = torch.ones_like(keep[name], dtype=torch.bool)
        rounded[name][worst_first[: len(score) - wanted]] = False
    return rounded
