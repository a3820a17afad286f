"""This file finds the layers that --keep leaves whole, with all that can only be cut together with them."""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from models import Network
from pruning.groups import Decisions
from settings.registry import GRANULARITIES

NEAR = 3  # so many names are told where a pattern fits none


def left_whole(network: Network, patterns: Sequence[str], prune_type: str, residual: str = "free") -> frozenset[str]:
    """Return the paths of the units that are never cut: those that a pattern fits, and those decided together with one.

    A pattern is a path such as "stem", in which * stands for any characters, as in "stage1.*". Filters are decided together
    by `residual` ("grouped": all that write a stream), in groups of a convolution, and where they are tied to channels.
    ValueError for a pattern that fits no unit of this `prune_type`, and where nothing is left to cut.
    """
    granularity = GRANULARITIES.get(prune_type)
    names = list(granularity.units(network))
    whole: set[str] = set()
    for pattern in patterns:
        fitting = [name for name in names if fnmatchcase(name, pattern)]
        if not fitting:
            raise ValueError(_unknown(network, pattern, names, prune_type))
        whole.update(fitting)
    if granularity.removable and whole:
        decided = Decisions(network, names, residual).layers.values()
        whole.update(name for members in decided if whole.intersection(members) for name in members)
    if patterns and not names_left(names, whole):
        raise ValueError(f"{' '.join(patterns)} leaves nothing that --prune_type {prune_type} could cut")
    return frozenset(whole)


def names_left(names: Sequence[str], whole: set[str] | frozenset[str]) -> list[str]:
    """Return those of the names that may be cut, in their order."""
    return [name for name in names if name not in whole]


def _unknown(network: Network, pattern: str, names: list[str], prune_type: str) -> str:
    """Return why a pattern fits none of the names: it fits what is never cut, or it is near to others."""
    never = [name for name in network.all_units if fnmatchcase(name, pattern)]
    if never:
        return f"'{pattern}' is {never[0]}, which --prune_type {prune_type} never cuts: leave it out"
    near = difflib.get_close_matches(pattern, names, n=NEAR, cutoff=0.4)
    words = f"the nearest are {', '.join(near)}" if near else f"layers are {', '.join(names[:NEAR])} and so on"
    return f"no layer fits '{pattern}': {words}"
