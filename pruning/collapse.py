"""This file says whether a network has collapsed: whether a layer has no weight left, or no path leads to the outputs."""

import torch
from torch import Tensor

from models import Network, Unit


def live_weights(unit: Unit) -> Tensor:
    """Return which weights of a unit its gate leaves in force, bool in the weight's shape."""
    gate, dimensions = unit.gate, unit.weight.dim()
    live = torch.ones_like(unit.weight, dtype=torch.bool)
    if gate is None:
        return live
    kept = unit.alive(torch.bool) if gate.by_filter else gate.decide()
    live &= kept.view(*kept.shape, *[1] * (dimensions - kept.dim())).to(live.device)
    if gate.reads is not None:
        live &= gate.reads.view(1, -1, *[1] * (dimensions - 2)).to(live.device)
    return live


@torch.no_grad()
def collapse(network: Network) -> dict:
    """Return what has collapsed under the gates that are in force, as plain values for summary.json.

    `empty` are the units without a live weight, in the order of execution. `connected` says whether a path of live weights
    leads from the input to an output, past residual shortcuts too; without one the outputs are the same for all images.
    """
    empty, reached = [], {"input": torch.ones(network.input_channels, dtype=torch.bool)}
    for link in network.links:
        source, target = reached[link.source], reached.get(link.target, torch.zeros(0, dtype=torch.bool))
        if link.unit is None:
            index, width, written = torch.arange(len(source)), len(source), source
        else:
            live = live_weights(network.get_submodule(link.unit))
            if not live.any():
                empty.append(link.unit)
            written = _passed(source, live, network.get_submodule(link.unit).groups)
            index, width = network.written(link)
        target = torch.cat([target, target.new_zeros(max(width - len(target), 0))])
        target[index] |= written
        reached[link.target] = target
    return {"empty": empty, "connected": any(bool(reached[node].any()) for node in network.outputs)}


def _passed(source: Tensor, live: Tensor, groups: int) -> Tensor:
    """Return which filters read a channel that is reached, (filters,) bool; `live` are the weights of the unit in force."""
    filters = len(live)
    if filters == 0 or live.shape[1] == 0:
        return torch.zeros(filters, dtype=torch.bool)
    reads = (live.flatten(2).any(2) if live.dim() > 2 else live).cpu().view(groups, filters // groups, -1)
    # a linear layer may read several pixels of a channel
    columns = source.repeat_interleave(max(reads.shape[2] * groups // len(source), 1)).view(groups, 1, -1)
    return (reads & columns).any(2).flatten()
