"""This file meets budgets: how much may be left, said as MACs or parameters after removal instead of as a rate."""

from collections.abc import Callable

import torch
from torch import Tensor

from models import Network
from pruning.accounting import count, positions, removed

Keep = dict[str, Tensor]


class Budget:
    """A budget limits what removal may leave of the whole network's `what`, "macs" or "parameters".

    `search` finds the lowest threshold that meets the limit, then takes single decisions back that still fit.
    """

    # a threshold that takes many channels at once may fall short by more: then single decisions are taken back
    NEAR, TRIES = 0.005, 64

    def __init__(self, network: Network, what: str, image_size: int):
        self.network, self.what, self.pixels = network, what, positions(network, image_size)
        self.whole = getattr(count(network, self.pixels), what)

    def fraction_left(self, kept: Keep) -> float:
        """Return what removal would leave, as a fraction of the whole; `kept` holds bool tensors on the CPU."""
        return getattr(removed(self.network, kept, self.pixels), self.what) / self.whole

    def search(self, choose: Callable[[int], Keep], spread: Callable[[Keep], Keep], total: int, limit: float) -> Keep:
        """Return the decisions to keep, so that at most the fraction `limit` is left.

        `choose(k)` gives the decisions that cut k of `total`, or raises ValueError where so many may not go; `spread`
        turns decisions into the filters kept of each unit. Where even cutting the most that may go leaves more than the
        limit, those decisions are returned.
        """
        most = _first(lambda k: not _possible(choose, k), total) - 1
        cut = _first(lambda k: self.fraction_left(spread(choose(k))) <= limit, most)
        keep = tried = choose(cut)
        fraction = self.fraction_left(spread(keep))
        for k in range(cut - 1, max(cut - 1 - self.TRIES, -1), -1):
            if fraction >= limit - self.NEAR:
                break
            milder = choose(k)
            # what this threshold keeps and the one tried before did not: one, or one of each layer, or some that tie
            for name, index in _positions({name: milder[name] & ~tried[name] & ~keep[name] for name in keep}):
                more = keep | {name: keep[name].index_fill(0, index, True)}
                if (larger := self.fraction_left(spread(more))) <= limit:
                    keep, fraction = more, larger
            tried = milder
        return keep


def _positions(chosen: Keep) -> list[tuple[str, Tensor]]:
    """Return the name and the index, (1,), of each decision that is True."""
    return [(name, index) for name, mask in chosen.items() for index in mask.nonzero()]


def _first(holds: Callable[[int], bool], end: int) -> int:
    """Return the smallest k in 0..end for which `holds(k)`, or `end`; what holds for k must hold for k + 1."""
    low, high = 0, end
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _possible(choose: Callable[[int], Keep], k: int) -> bool:
    """Say whether so many decisions may go at all."""
    try:
        choose(k)
    except ValueError:
        return False
    return True


def round_up(scores: Keep, keep: Keep, multiples: dict[str, int]) -> Keep:
    """Return `keep` with the next best of each layer added, until their number is its multiple or the layer is whole.

    A layer of which nothing is kept stays empty.
    """
    rounded = {}
    for name, score in scores.items():
        wanted = min(-(-int(keep[name].sum()) // multiples[name]) * multiples[name], len(score))
        worst_first = score.argsort(stable=True)
        rounded[name] = torch.ones_like(keep[name], dtype=torch.bool)
        rounded[name][worst_first[: len(score) - wanted]] = False
    return rounded
