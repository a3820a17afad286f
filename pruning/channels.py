"""This file follows channels through a network once filters are removed: counting and removal both read this one walk."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models import Link, Network, Unit


@dataclass
class _Node:
    """A tensor between units: the channels that it still holds, in their order, and the constants of those that are gone."""

    order: Tensor
    constant: Tensor


@dataclass
class Channels:
    """What removal leaves of a network. All indices are those of the whole network.

    `filters` and `inputs`: of each unit, the filters that stay and the columns of its weight that stay, in their order,
    (n,) int64; both empty for a unit that no output depends on any longer. Columns are input channels, but for a
    convolution in groups those of one group. `joints`: of each joint, the stream's width and the channels that the
    branch writes to. `constants`: of each joint, what removed filters would have added, (width,). `shifts`: of each unit,
    what constant input channels would have added to its product away from the image's border, (filters,). `nodes`: of each
    node of the wiring, the channels that it still holds, in their order.
    """

    filters: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    joints: dict[str, tuple[int, Tensor]] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    shifts: dict[str, Tensor] = field(default_factory=dict)
    nodes: dict[str, Tensor] = field(default_factory=dict)


def read_by_some(
    network: Network,
    kept: dict[str, Tensor],
    held: dict[str, Tensor] | None = None,
    reads: Callable[[str, Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return, for every unit, the filters that are kept and that a later unit or an output reads, (filters,) bool.

    A unit without an entry in `kept` keeps all filters. Those in `held`, {unit: (filters,) bool}, are among them in any case.
    `reads` maps a unit and those of its filters that are kept and read to the channels of its source that they read, (channels,)
    bool; without it they read what the unit's gate says, or all.
    """
    reads = reads or (lambda name, live: _reading(network.get_submodule(name), live))
    read = {node: torch.full((width,), node in network.outputs) for node, width in network.widths().items()}
    live = {}
    for link in reversed(network.links):  # what was read before a unit writes is no matter to it
        wanted, source = read[link.target], read[link.source]
        if link.unit is None:
            source |= wanted[: len(source)]
            continue
        live[link.unit] = wanted[network.written(link)[0]]
        if link.unit in kept:
            live[link.unit] &= kept[link.unit]
        channels = reads(link.unit, live[link.unit])
        source[: len(channels)] |= channels
        if held and link.unit in held:
            live[link.unit] |= held[link.unit]
    return live


def _reading(unit: Unit, live: Tensor) -> Tensor:
    """Return the channels that a unit's filters read by what its gate says: none, unless one of them is live."""
    reads = None if unit.gate is None else unit.gate.reads
    channels = torch.ones(unit.weight.shape[1] * unit.groups, dtype=torch.bool) if reads is None else reads.cpu()
    return channels & live.any()


def needed(network: Network, kept: dict[str, Tensor]) -> set[str]:
    """Return the units that an output still depends on: a branch whose last convolution has no filter left goes as a whole."""
    return {name for name, live in read_by_some(network, kept).items() if live.any()}


def in_groups(network: Network) -> list[Link]:
    """Return the convolutions whose filters each read a group of several channels: no single filter of them can be cut."""
    return [link for link in network.links if link.unit and not link.ties and network.get_submodule(link.unit).in_groups]


def alone(network: Network, link: Link) -> bool:
    """Say whether the unit of a link alone reads what one other unit alone has written, so that a group takes that along."""
    writers = [other for other in network.links if other.target == link.source]
    readers = [other for other in network.links if other.source == link.source]
    return len(writers) == len(readers) == 1 and {writers[0].unit, link.unit} <= network.units.keys()


def put_in_one(network: Network, masks: dict) -> None:
    """Leave one mask in force, of {unit: mask}, where a tied unit alone reads what a unit alone writes: that behind the former.

    Both are like one layer, and two masks that move would stop all gradients. A learned scale has a mask of its own: in front
    of it channels may be compared with each other, which must not see those that were cut.
    """
    for link in network.links:
        scales = link.ties and network.get_submodule(link.unit).is_scale
        if link.ties and not scales and link.unit in masks and alone(network, link) and link.source not in network.outputs:
            before = next(other.unit for other in network.links if other.target == link.source)
            if before in masks:
                masks[before].masked_behind = masks[link.unit].for_both = True


@torch.no_grad()
def follow(network: Network, kept: dict[str, Tensor], constant_of: dict[str, Tensor] | None = None) -> Channels:
    """Follow the channels through the network once the filters not in `kept` are taken out.

    `kept` is {unit: (filters,) bool, on the CPU}; a unit without an entry keeps all. `constant_of` is what a unit's
    cut filters give instead of 0, {unit: (filters,)}. A stream holds only the channels that somebody has written by
    then, in the order in which they were first written: it grows at its end, so that every reader reads all of it. So
    a channel keeps its place, also in a network from which filters have been taken out before.
    ValueError where filters that are tied to channels are to go without them, or a part of a group is cut.
    """
    units, live, channels = network.all_units, needed(network, kept), Channels()
    widths = network.widths()
    dtype = next(network.parameters()).dtype
    none, zeros = torch.zeros(0, dtype=torch.int64), {n: torch.zeros(n, dtype=dtype) for n in {*widths.values()}}
    nodes = {"input": _Node(torch.arange(widths["input"]), zeros[widths["input"]])}
    for link in network.links:
        width = widths[link.target]
        source = nodes.get(link.source, _Node(none, zeros[widths[link.source]]))
        if link.unit is None:
            constant = zeros[width].clone()
            constant[: len(source.constant)] = source.constant
            nodes[link.target] = _Node(source.order, constant)
            continue
        unit, mask = units[link.unit], kept.get(link.unit)
        filters = inputs = none
        if link.unit in live:
            filters = torch.arange(unit.filters) if mask is None else mask.nonzero().flatten()
            filters, inputs = _of_unit(link, unit, filters, source.order)
            if constant_of is not None:
                channels.shifts[link.unit] = _shift(link, unit, source.constant)
        place, constant = network.written(link)[0], zeros[width].clone()
        if constant_of is not None and link.unit in constant_of:
            constant[place] = constant_of[link.unit]
        channels.inputs[link.unit] = inputs
        if link.joint is None:
            channels.filters[link.unit] = filters
            nodes[link.target] = _Node(filters, constant)
        else:
            stream = nodes.get(link.target, _Node(none, zeros[width]))
            joint = network.get_submodule(link.joint)
            if joint.constant is not None:  # by filters that were removed before
                constant[: len(joint.constant)] += joint.constant.cpu()
            _join(channels, link, stream, filters, place, constant)
            stream.constant = joint.activated(stream.constant)
            nodes[link.target] = stream
    channels.nodes = {name: node.order for name, node in nodes.items()}
    return channels


def _of_unit(link: Link, unit: Unit, filters: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Return the filters that stay, in their order, and the columns of the weight that stay; the source holds `order`."""
    if link.ties:
        if not torch.equal(filters, order.sort().values):
            raise ValueError(f"'{link.unit}': filter c reads channel c only, and so both stay or both go")
        return order, torch.arange(1 if len(order) else 0)
    if unit.groups > 1:
        columns = unit.weight.shape[1]
        groups = torch.unique(filters // (unit.filters // unit.groups))
        whole = _of_groups(groups, unit.filters // unit.groups), _of_groups(groups, columns)
        if not torch.equal(filters, whole[0]) or not torch.equal(order, whole[1]):
            raise ValueError(cannot_be_cut(link.unit, unit))
        return filters, torch.arange(columns)
    return filters, order


def _of_groups(groups: Tensor, size: int) -> Tensor:
    """Return the indices of what is in these groups, of which each has so many."""
    return (groups.unsqueeze(1) * size + torch.arange(size)).flatten()


def cannot_be_cut(name: str, unit: Unit) -> str:
    """Return the message that says why single filters of a convolution in groups cannot go."""
    return f"'{name}' is a convolution in {unit.groups} groups, of which only whole ones leave"


def _shift(link: Link, unit: Unit, constant: Tensor) -> Tensor:
    """Return what constant input channels add to the unit's product, (filters,)."""
    weight = unit.weight_in_force.cpu()
    sums = weight.flatten(2).sum(-1) if weight.dim() > 2 else weight
    constant = constant[: len(sums) if link.ties else sums.shape[1] * unit.groups]  # what the source has by then
    if link.ties:
        return sums[:, 0] * constant
    per_group = constant.view(unit.groups, -1).repeat_interleave(unit.filters // unit.groups, 0)
    return sums @ constant if unit.groups == 1 else (sums * per_group).sum(1)


def _join(channels: Channels, link: Link, stream: _Node, filters: Tensor, place: Tensor, constant: Tensor) -> None:
    """Add the branch's channels to the stream, and record the joint; channels that the stream does not hold yet go to its end.

    What is recorded is the sum before the joint's ReLU.
    The unit's filter i writes the channel `place[i]`.
    """
    width, writes = len(stream.constant), place[filters]
    position = torch.full((width,), -1)
    position[stream.order] = torch.arange(len(stream.order))
    order = torch.cat([stream.order, writes[position[writes] < 0]])
    position[order] = torch.arange(len(order))
    written, by_position = position[writes].sort()
    channels.filters[link.unit] = filters[by_position]
    channels.joints[link.joint] = (len(order), written)
    total = stream.constant + constant
    channels.constants[link.joint] = total[order]
    stream.order, stream.constant = order, total
    stream.constant[order] = 0
