"""Which channels are where once filters are gone: one walk along the wiring, which counting and removal both read."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from models import Network


@dataclass
class _Node:
    """A tensor between units: the channels it holds, in their order, and what the others would hold, a constant each."""

    order: Tensor
    constant: Tensor


@dataclass
class Channels:
    """What stays of a network. All indices are those of the whole network.

    `filters` and `inputs`: of each unit, the filters and the input channels that stay, in their order, (n,) int64; both
    empty for a unit that the output no longer depends on. `joints`: of each joint, the stream's width and the places
    that the branch writes to. `constants`: of each joint, what removed filters would have added, (width,). `shifts`: of
    each unit, what constant input channels would have added to its product away from the image's border, (filters,).
    """

    filters: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    joints: dict[str, tuple[int, Tensor]] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    shifts: dict[str, Tensor] = field(default_factory=dict)


def needed(network: Network, kept: dict[str, Tensor]) -> set[str]:
    """Units that the output still depends on: a branch whose last convolution is empty goes as a whole."""
    found, read = set(), {"output"}
    for link in reversed(network.links):
        if link.target not in read or (link.unit in kept and not kept[link.unit].any()):
            continue
        read.add(link.source)
        if link.unit is not None:
            found.add(link.unit)
    return found


@torch.no_grad()
def follow(network: Network, kept: dict[str, Tensor], constant_of: dict[str, Tensor] | None = None) -> Channels:
    """Follow the channels through the network once the filters not in `kept` are taken out.

    `kept` is {unit: (filters,) bool, on the CPU}; a unit without an entry keeps all. `constant_of` is what a unit's
    cut filters give instead of 0, {unit: (filters,)}. A stream holds only the channels that somebody has written by
    then, in the order in which they were first written: it grows at its end, so that every reader reads all of it.
    """
    units, live, found = network.all_units, needed(network, kept), Channels()
    widths = network.widths()
    dtype = next(network.parameters()).dtype
    none, zeros = torch.zeros(0, dtype=torch.int64), {n: torch.zeros(n, dtype=dtype) for n in {*widths.values()}}
    nodes = {"input": _Node(torch.arange(3), zeros[3])}
    for link in network.links:
        width = widths[link.target]
        source = nodes.get(link.source, _Node(none, zeros[widths[link.source]]))
        if link.unit is None:
            constant = zeros[width].clone()
            constant[: len(source.constant)] = source.constant
            nodes[link.target] = _Node(source.order, constant)
            continue
        mask = kept.get(link.unit)
        reads = link.unit in live
        filters = torch.arange(width) if mask is None else mask.nonzero().flatten()
        filters = filters if reads else none
        constant = zeros[width] if constant_of is None else constant_of.get(link.unit, zeros[width])
        found.inputs[link.unit] = source.order if reads else none
        if constant_of is not None and reads:
            weight = units[link.unit].weight_in_force.cpu()
            found.shifts[link.unit] = (weight.flatten(2).sum(-1) if weight.dim() > 2 else weight) @ source.constant
        if link.joint is None:
            found.filters[link.unit] = filters
            nodes[link.target] = _Node(filters, constant)
        else:
            stream = nodes.get(link.target, _Node(none, zeros[width]))
            _join(found, link, stream, filters, constant)
            nodes[link.target] = stream
    return found


def _join(found: Channels, link, stream: _Node, filters: Tensor, constant: Tensor) -> None:
    """The branch's channels are added to the stream: what is not there yet goes to its end."""
    width = len(stream.constant)
    there = torch.full((width,), -1)
    there[stream.order] = torch.arange(len(stream.order))
    order = torch.cat([stream.order, filters[there[filters] < 0]])
    there[order] = torch.arange(len(order))
    places, by_place = there[filters].sort()
    found.filters[link.unit] = filters[by_place]
    found.joints[link.joint] = (len(order), places)
    total = stream.constant + constant
    found.constants[link.joint] = total[order]
    # behind the joint's ReLU
    stream.order, stream.constant = order, total.clamp_min(0)
    stream.constant[order] = 0
