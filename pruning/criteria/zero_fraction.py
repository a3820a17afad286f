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
    drop: Annotated[float, "fraction"] = 0.01,
    own: Annotated[float, "fraction"] = 0.95,
    own_at_least: Annotated[float, "fraction"] = 0.7,
    readers: Annotated[float, "fraction"] = 0.95,
) -> dict[str, Tensor]:
    """Weights of a filter and of its readers below one threshold (Singh et al., 2019, arXiv 1811.08342), after --reg l1.

    F is the fraction of the filter's weights with |w| < threshold, G that of all weights that read its channel; the score is
    1 - (F + G) / 2. counts='multilayer' finds its own counts by the paper's rule, layer by layer on what is left of the
    inputs: a filter goes if F >= own_at_least and (F >= own or G >= readers). threshold=0 looks for the largest one that
    costs the sample's accuracy no more than `drop`.
    """
    threshold = threshold or _threshold(units, context, drop)
    small = {name: unit.weight.detach().abs() < threshold for name, unit in context.network.all_units.items()}
    read = _readers(context.network, small)
    if counts == "given":
        return {name: 1 - (small[name].double().flatten(1).mean(1) + read[name]) / 2 for name in units}
    keep, left = {}, {}  # left: of every node, the channels that somebody writes
    for link in context.network.links:
        if link.unit is None:
            written = left[link.source]
        elif link.unit not in units:
            written = torch.ones_like(read[link.unit], dtype=torch.bool)
        else:
            weights = small[link.unit]
            inputs = _reading(weights, left[link.source], link.ties) if link.source in left else weights
            # without inputs all are alike
            own_zero = inputs.double().flatten(1).mean(1).nan_to_num(1.0)
            gone = (own_zero >= own_at_least) & ((own_zero >= own) | (read[link.unit] >= readers))
            if gone.all():  # the fullest one stays
                gone[own_zero.argmin()] = False
            written = keep[link.unit] = ~gone
        left[link.target] = _longer(left[link.target], written, torch.logical_or) if link.target in left else written
    return keep


def _reading(small: Tensor, written: Tensor, ties: str | None) -> Tensor:
    """Of a unit's small weights those that read a channel which is written; a filter tied to another one is all small."""
    return small | ~written.view(-1, 1, 1, 1) if ties else small[:, written]


def _longer(first: Tensor, second: Tensor, operation) -> Tensor:
    """An operation on two tensors whose rows may be of different number, those that are missing 0."""
    rows = max(len(first), len(second))
    filled = [torch.cat([part, part.new_zeros(rows - len(part), *part.shape[1:])]) for part in (first, second)]
    return operation(*filled)


def _readers(network: Network, small: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of every unit's filters, the fraction of small ones among the weights that read them: {unit: (filters,)}.

    A filter that nothing reads has 1.
    """
    seen, found = {}, {}  # seen: of every node's channels, the small weights and all weights that read it from here on
    widths = network.widths()
    for link in reversed(network.links):
        target = seen.get(link.target)
        if link.unit is None:
            reads = None if target is None else target[: widths[link.source]]
        else:
            weights = small[link.unit]
            rows = weights.new_zeros(len(weights), 2, dtype=torch.float64) if target is None else target[: len(weights)]
            found[link.unit] = torch.where(rows[:, 1] > 0, rows[:, 0] / rows[:, 1].clamp_min(1), 1.0)
            by_input = weights.double().flatten(1) if link.ties else weights.double().transpose(0, 1).flatten(1)
            reads = torch.stack([by_input.sum(1), torch.full_like(by_input[:, 0], by_input.shape[1])], 1)
        if reads is not None:
            seen[link.source] = _longer(seen[link.source], reads, torch.add) if link.source in seen else reads
    return found


def _threshold(units: dict[str, Unit], context: Context, drop: float) -> float:
    """The largest threshold, to a twentieth of it, below which weights may be 0 at no more than this loss of accuracy."""
    weights = {unit: unit.weight.detach().clone() for unit in units.values()}
    largest = max(float(weight.abs().max()) for weight in weights.values())
    wanted = context.measure()[1] - drop
    # weights that small are 0 to float32's sums
    low, high = math.log(1e-6 * largest + 1e-30), math.log(largest + 1e-30)
    try:
        while high - low > 0.05:
            middle = (low + high) / 2
            with torch.no_grad():
                for unit, weight in weights.items():
                    unit.weight.copy_(weight * (weight.abs() >= math.exp(middle)))
            low, high = (middle, high) if context.measure()[1] >= wanted - 1e-9 else (low, middle)
    finally:
        with torch.no_grad():
            for unit, weight in weights.items():
                unit.weight.copy_(weight)
    return math.exp(low)
