"""This criterion, zero_fraction, keeps the filters that have few small weights and are read by few."""

import math
from typing import Annotated, Literal

import torch
from torch import Tensor

from models import Network, Unit
from pruning.context import Context


def zero_fraction(
    units: Annotated[dict[str, Unit], "filters only"],
    context: Annotated[Context, "reads images"],
    *,
    counts: Literal["given", "multilayer"] = "given",
    threshold: Annotated[float, "instead of images"] = 0.0,
    drop: Annotated[float, "at most 1", "unless threshold"] = 0.01,
    own: Annotated[float, "at most 1", "needs counts='multilayer'"] = 0.95,
    own_at_least: Annotated[float, "at most 1", "needs counts='multilayer'"] = 0.7,
    readers: Annotated[float, "at most 1", "needs counts='multilayer'"] = 0.95,
    least_left: Annotated[float, "at most 1", "needs counts='multilayer'"] = 0.0,
) -> dict[str, Tensor]:
    """Weights of a filter and of its readers below one threshold (Singh et al., 2019, arXiv 1811.08342), after --reg l1.

    F is the fraction of the filter's weights with |w| < threshold, G that of all weights that read its channel; the score is
    1 - (F + G) / 2. counts='multilayer' finds its own counts by the paper's rule, layer by layer on the inputs that remain: a
    filter goes if F >= own_at_least and (F >= own or G >= readers). Those of the smallest F stay where a layer would keep
    less than one filter, or than the fraction `least_left`, of which the paper says nothing. With threshold=0 the largest
    threshold is searched that costs the sample's accuracy no more than `drop`. The threshold and the fraction of weights
    below it are recorded, the least, the median and the largest F of a filter, by which `own` and `own_at_least` may be
    chosen, and that nothing is lost where all weights at 0 cost no more either: then the network knows nothing that a
    threshold could cost.
    """
    threshold = threshold or _threshold(units, context, drop)
    small = {name: unit.weight.detach().abs() < threshold for name, unit in context.network.all_units.items()}
    read = _readers(context.network, small)
    below = torch.cat([small[name].flatten() for name in units]).double().mean()
    context.record |= {"threshold": threshold, "below": float(below)}
    if counts == "given":
        own_zeros = {name: small[name].double().flatten(1).mean(1) for name in units}
        context.record["of_filters"] = _least_median_most(own_zeros)
        return {name: 1 - (own_zeros[name] + read[name]) / 2 for name in units}
    keep, own_zeros, alive = {}, {}, {}  # alive: {node: the channels that some unit still writes}
    for link in context.network.links:
        if link.unit is None:
            written = alive[link.source]
        elif context.network.get_submodule(link.unit).is_scale:  # it goes with the filter whose channel it scales
            written = alive[link.source]
            if link.unit in units:
                keep[link.unit] = written.clone()
        else:
            stays = torch.ones_like(read[link.unit], dtype=torch.bool)
            if link.unit in units:
                own_zero = own_zeros[link.unit] = _own(units[link.unit], small[link.unit], alive.get(link.source))
                stays = (own_zero < own_at_least) | ((own_zero < own) & (read[link.unit] < readers))
                lacking = max(math.ceil(least_left * len(stays) - 1e-9), 1) - int(stays.sum())
                stays[own_zero.masked_fill(stays, math.inf).argsort(stable=True)[: max(lacking, 0)]] = True
                keep[link.unit] = stays
            place, width = context.network.written(link)
            written = stays.new_zeros(width).index_put((place.to(stays.device),), stays)
        alive[link.target] = _longer(alive[link.target], written, torch.logical_or) if link.target in alive else written
    context.record["of_filters"] = _least_median_most(own_zeros)
    return keep


def _least_median_most(own_zeros: dict[str, Tensor]) -> list[float]:
    """Return the least, the median and the largest of these fractions, one for each filter, by unit."""
    every = torch.cat([torch.zeros(0, dtype=torch.float64), *(fractions.cpu() for fractions in own_zeros.values())])
    every = every if len(every) else torch.zeros(1)
    return [float(every.min()), float(every.median()), float(every.max())]


def _own(unit: Unit, small: Tensor, written: Tensor | None) -> Tensor:
    """Return the fraction of small ones among each filter's weights for the channels that are still written, (filters,).

    `written` is (channels,) bool, None where all are. Without such a channel all filters are alike, and have 1.
    """
    filters, columns, *_ = small.shape
    if written is None:
        read = small.new_ones(filters, columns)
    else:
        channels = written[: columns * unit.groups].view(unit.groups, columns)
        read = channels.repeat_interleave(filters // unit.groups, 0)
    counted = (small.double().flatten(2).mean(2) * read).sum(1) / read.sum(1)
    return counted.nan_to_num(1.0)


def _longer(first: Tensor, second: Tensor, operation) -> Tensor:
    """Return an operation of two tensors; the one with fewer rows is filled up with zeros."""
    rows = max(len(first), len(second))
    filled = [torch.cat([part, part.new_zeros(rows - len(part), *part.shape[1:])]) for part in (first, second)]
    return operation(*filled)


def _readers(network: Network, small: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the fraction of small ones among the weights that read each filter's channel, {unit: (filters,)}.

    A filter that nothing reads has 1.
    """
    # readings: {node: for each channel how many small weights and how many weights read it from here on, (channels, 2)}
    readings, fractions = {}, {}
    widths = network.widths()
    for link in reversed(network.links):
        target = readings.get(link.target)
        if link.unit is None:
            reads = None if target is None else target[: widths[link.source]]
        elif network.get_submodule(link.unit).is_scale and target is not None:  # the channel is read behind it
            reads = target
            fractions[link.unit] = torch.where(reads[:, 1] > 0, reads[:, 0] / reads[:, 1].clamp_min(1), 1.0)
        else:
            weights, (place, width) = small[link.unit], network.written(link)
            rows = weights.new_zeros(width, 2, dtype=torch.float64)
            if target is not None:
                rows = _longer(target, rows, torch.add)
            rows = rows[place.to(rows.device)]
            fractions[link.unit] = torch.where(rows[:, 1] > 0, rows[:, 0] / rows[:, 1].clamp_min(1), 1.0)
            groups = network.get_submodule(link.unit).groups
            in_groups = weights.double().view(groups, len(weights) // groups, *weights.shape[1:])
            by_input = in_groups.transpose(1, 2).flatten(0, 1).flatten(1)  # a row for each channel that is read
            reads = torch.stack([by_input.sum(1), by_input.new_full((len(by_input),), by_input.shape[1])], 1)
        if reads is not None:
            readings[link.source] = _longer(readings[link.source], reads, torch.add) if link.source in readings else reads
    return fractions


def _threshold(units: dict[str, Unit], context: Context, drop: float) -> float:
    """Return the largest threshold, to 5 %, below which weights can be set to 0 at no more than this loss of accuracy."""
    weights = {unit: unit.weight.detach().clone() for unit in units.values()}
    largest = max((float(weight.abs().max()) for weight in weights.values() if weight.numel()), default=0.0)
    wanted = context.measure()[1] - drop

    @torch.no_grad()
    def enough(threshold: float) -> bool:
        for unit, weight in weights.items():
            unit.weight.copy_(weight * (weight.abs() >= threshold))
        return context.measure()[1] >= wanted - 1e-9

    # below a millionth of the largest, weights vanish in float32's sums
    low, high = math.log(1e-6 * largest + 1e-30), math.log(largest + 1e-30)
    try:
        context.record["nothing_lost"] = enough(math.inf)
        while high - low > 0.05:
            middle = (low + high) / 2
            low, high = (middle, high) if enough(math.exp(middle)) else (low, middle)
    finally:
        with torch.no_grad():
            for unit, weight in weights.items():
                unit.weight.copy_(weight)
    return math.exp(low)
