"""A scope says which scores are compared with which.

It takes the scores of every unit, larger meaning keep, and the fraction to remove; it returns a bool tensor for each unit,
True where kept. Of n pieces that are compared exactly k = floor(rate * n + 1e-9) are cut, among equal scores those of lower
index first. A scope that has a parameter `kept` gets a function that returns what the masks keep so far; one that has a parameter
`weights` gets a function that returns the units' dense weights, one that has `linear` the names of the linear layers, and one
that has `whole` the names of those that are never cut.
"""

from collections.abc import Callable, Collection
from typing import Annotated, Literal

import torch
from torch import Tensor

from models.numerics import precise
from pruning.files import read_counts, read_scan
from pruning.groups import mean_of

Scores = dict[str, Tensor]


def _number_cut(rate: float, n: int) -> int:
    """Return how many of n pieces go at this rate: floor(rate * n)."""
    # floats fall short: 0.7 * 10 is 7.000000000000001 but 0.29 * 100 is 28.999999999999996
    return int(rate * n + 1e-9)


def _kth(scores: Tensor, k: int) -> Tensor:
    """Return the k-th smallest value, k from 1. On an accelerator it sorts, which --deterministic allows there."""
    return scores.kthvalue(k).values if scores.device.type == "cpu" else scores.sort().values[k - 1]


def _smallest(scores: Tensor, k: int) -> Tensor:
    """Mark exactly the k smallest of a flat tensor, among equals those of lower index, without a copy to the host."""
    if k <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = _kth(scores, k)
    below, ties = scores < threshold, scores == threshold
    return below | (ties & (ties.cumsum(0) <= k - below.sum()))


def _best(scores: Tensor, floor: int) -> Tensor:
    """Mark the `floor` largest of a layer, those that would be cut last."""
    if floor == 0:  # without a sort, which the published code's masks would wait for at every fourth step
        return torch.zeros_like(scores, dtype=torch.bool)
    return ~_smallest(scores, max(scores.numel() - floor, 0))


def _raised(scores: list[Tensor], kept: list[Tensor], fraction: float) -> list[Tensor]:
    """Return flat scores in which those of what is kept are raised by a fraction of their size."""
    pairs = zip(scores, kept, strict=True)
    return [torch.where(mask.flatten(), score + fraction * score.abs(), score) for score, mask in pairs]


def global_(
    scores: Scores,
    rate: float,
    kept: Callable[[], Scores] | None = None,
    *,
    normalise: Literal["mean", "none"] = "mean",
    floor: Annotated[int, "at most 1000000"] = 1,
    threshold: Literal["exact", "published"] = "exact",
    hysteresis: float = 0.0,
) -> Scores:
    """One threshold for the whole network, the paper's eta, over comparable scores.

    normalise='mean' divides each layer's scores by their mean, 'none' compares the raw ones; `floor` pieces of each
    layer always stay. With threshold='published' what stays is strictly above sorted[int(n * rate)], as in the KSC 2020
    code, so that int(n * rate) + 1 go, and all that tie with them. With `hysteresis` what is cut returns only if its score
    exceeds that of what it replaces by this fraction of the latter's size. ValueError if the rate would cut into the floor.
    """
    flat = [precise(score).flatten() for score in scores.values()]
    if normalise == "mean":
        flat = [score / mean_of(score) for score in flat]
    if hysteresis and kept is not None:
        flat = _raised(flat, [kept()[name] for name in scores], hysteresis)
    every = torch.cat(flat)
    if threshold == "published":
        cut = every <= _kth(every, int(every.numel() * rate) + 1)
        cut &= ~torch.cat([_best(score, floor) for score in flat])
    else:
        safe = torch.cat([_best(score, floor) for score in flat])
        k, room = _number_cut(rate, every.numel()), sum(max(score.numel() - floor, 0) for score in flat)
        if k > room:
            raise ValueError(
                f"rate {rate:g} cuts {k} of {every.numel()}, but with a floor of {floor} a layer only {room} may go: "
                f"the largest rate is {room / every.numel():.4f}"
            )
        cut = _smallest(every.masked_fill(safe, float("inf")), k)
    pieces = (~cut).split([score.numel() for score in flat])
    return {name: piece.view_as(score) for (name, score), piece in zip(scores.items(), pieces, strict=True)}


def local(
    scores: Scores,
    rate: float,
    kept: Callable[[], Scores] | None = None,
    *,
    floor: Annotated[int, "at most 1000000"] = 1,
    hysteresis: float = 0.0,
) -> Scores:
    """One threshold a layer: each loses floor(rate * n) of its n.

    With `hysteresis` what is cut returns only if its score exceeds that of what it replaces by this fraction of the latter's
    size. ValueError if that would leave a layer with fewer than `floor`.
    """
    keep = {}
    for name, score in scores.items():
        k = _number_cut(rate, score.numel())
        if k > max(score.numel() - floor, 0):
            raise ValueError(f"rate {rate:g} cuts {k} of the {score.numel()} in {name}, which has a floor of {floor}")
        flat = [precise(score).flatten()]
        if hysteresis and kept is not None:
            flat = _raised(flat, [kept()[name]], hysteresis)
        keep[name] = ~_smallest(flat[0], k).view_as(score)
    return keep


def deviation(
    scores: Annotated[Scores, "single weights", "magnitudes"],
    rate: float,
    weights: Callable[[], Scores],
    *,
    q: Annotated[float, "says how much"] = 0.0,
    floor: Annotated[int, "at most 1000000"] = 1,
) -> Scores:
    """A threshold for each layer, q times the standard deviation of its weights: |w| >= q * std(W) stays.

    Han et al., 2015 (arXiv 1506.02626). With q=0 there is one q for all layers, at which exactly the rate is cut: weights
    are compared as multiples of their layer's deviation. Another q decides itself how many go, and `rate` does not matter.
    `floor` weights of each layer always stay. The deviation is the root of the mean square distance from the mean, over the
    weights of the layer that are not cut for good, whose scores are finite. ValueError if the rate would cut into the floor.
    """
    dense, deviations = weights(), {}
    for name, score in scores.items():
        values = precise(dense[name])[torch.isfinite(score)]
        deviations[name] = values.std(correction=0) if len(values) else values.new_zeros(())
    if q == 0:
        # a layer whose weights are all equal has no deviation to be a multiple of: what is not 0 there goes last
        tiny = torch.finfo(torch.float32).tiny
        multiples = {name: precise(score) / deviations[name].clamp_min(tiny) for name, score in scores.items()}
        return global_(multiples, rate, normalise="none", floor=floor)
    keep = {}
    for name, score in scores.items():
        best = _best(precise(score).flatten(), floor).view_as(score)
        keep[name] = (precise(score) >= q * deviations[name]) | best
    return keep


def preset(scores: Annotated[Scores, "filters only"], rate: float, whole: Collection[str] = (), *, name: str) -> Scores:
    """As many filters of each layer as were published: a name in pruning/presets.json, or a file like one entry of it.

    Layers without a count stay whole, and those of --keep; `rate` does not matter. ValueError for a layer that the network does
    not have, or that has fewer filters.
    """
    keep = {layer: torch.ones_like(score, dtype=torch.bool) for layer, score in scores.items()}
    for layer, kept in read_counts(name).items():
        if layer in whole:
            continue
        if layer not in scores:
            raise ValueError(f"'{name}' names a layer '{layer}', which this network does not have")
        if kept > len(scores[layer]):
            raise ValueError(f"'{name}' keeps {kept} filters of {layer}, which has {len(scores[layer])}")
        keep[layer] = ~_smallest(precise(scores[layer]), len(scores[layer]) - kept)
    return keep


def sensitivity(
    scores: Annotated[Scores, "filters only", "single layers"], rate: float, whole: Collection[str] = (), *, file: str
) -> Scores:
    """Rates for each layer from a scan (sensitivity.py): cut where the accuracy that was lost alone is the least.

    A filter costs what its layer lost when it was cut alone, in the order of scores, as far as that filter; between the
    rates of the scan losses are interpolated linearly. One threshold holds for all costs. Layers of --keep are passed over.
    ValueError for a scan of another network.
    """
    (scanned_rates, scanned), costs = read_scan(file), {}
    if odd := (scanned.keys() - {*whole}) ^ scores.keys():
        raise ValueError(f"'{file}' is of another network: {min(odd)} is only in one of them")
    for name, score in scores.items():
        rates = torch.tensor([0.0, *scanned_rates], dtype=torch.float64)
        lost = torch.tensor([0.0, *scanned[name]], dtype=torch.float64).clamp_min(0).cummax(0).values
        worst_first = score.flatten().argsort(stable=True)
        # the rate at which each filter goes, from the one that goes first
        rate_of = torch.arange(1, len(worst_first) + 1, dtype=torch.float64) / len(worst_first)
        upper = torch.searchsorted(rates, rate_of).clamp(1, len(rates) - 1)
        way = ((rate_of - rates[upper - 1]) / (rates[upper] - rates[upper - 1])).clamp(0, None)
        cost = lost[upper - 1] + way * (lost[upper] - lost[upper - 1])
        # among equal costs filters go in the order of scores, and from every layer alike
        costs[name] = torch.empty(len(worst_first), dtype=torch.float64, device=score.device)
        costs[name][worst_first] = (cost + 1e-9 * rate_of).to(score.device)
    return global_(costs, rate, normalise="none")


def smart_ratio(
    scores: Scores,
    rate: float,
    linear: Collection[str],
    *,
    keep: Annotated[float, "at most 1"] = 0.3,
    fall: Annotated[float, "at most 10"] = 0.0,
) -> Scores:
    """Densities for each layer from its depth (Su et al., 2020, arXiv 2009.11094): with --prune_imp random their random tickets.

    Of layer l of L a fraction is kept that is in proportion to k (k + 1) / l^fall, where k = L - l + 1; of linear layers it is
    `keep`. The proportion is such that floor(rate * n) of all n go; where a layer is whole, and nowhere else, it stops. The
    authors' code has fall=2 for VGG and 0 for ResNet. At least one piece of each layer stays. ValueError where the rate would
    cut into what is kept of linear layers, or into the last pieces of the others.
    """
    worths, layers = {}, len(scores)
    for number, (name, score) in enumerate(scores.items(), start=1):
        flat = precise(score).flatten()
        # the best piece of a layer is 1, the next 2, ...: the order in which pieces are taken as the proportion grows
        place = torch.empty(len(flat), dtype=torch.float64, device=flat.device)
        best_first = flat.flip(0).argsort(descending=True, stable=True)
        place[len(flat) - 1 - best_first] = torch.arange(1, len(flat) + 1, dtype=torch.float64, device=flat.device)
        if name in linear:  # before or behind everything else
            worth = torch.where(place <= max(_number_cut(keep, len(flat)), 1), torch.inf, -place)
        else:
            above = layers - number + 1
            worth = above * (above + 1) / number**fall * len(flat) / place
        worths[name] = worth.view(score.shape)
    k, every = _number_cut(rate, sum(score.numel() for score in scores.values())), sum(w.numel() for w in worths.values())
    fixed = sum(int(worth.isposinf().sum()) for worth in worths.values()) + sum(name not in linear for name in scores)
    if k > every - fixed:
        raise ValueError(f"rate {rate:g} cuts {k} of {every}, of which smart_ratio always keeps {fixed}")
    return global_(worths, rate, normalise="none")
