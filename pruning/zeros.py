"""This file finds the filters that are as good as removed without a mask: those that give exactly 0, or that nobody reads."""

import torch
from torch import Tensor

from models import Link, Network, Unit


def silent(unit: Unit) -> Tensor:
    """Return which filters give exactly 0 whatever they read, (filters,) bool.

    Their batch norm has scale and shift 0 or, where there is none, their weights and bias are 0.
    """
    if unit.norm is not None:
        return (unit.norm.weight == 0) & (unit.norm.bias == 0)
    zero = (unit.weight.flatten(1) == 0).all(1)
    return zero if unit.layer.bias is None else zero & (unit.layer.bias == 0)


@torch.no_grad()
def not_zero(network: Network) -> dict[str, Tensor]:
    """Return, for every convolution whose filters may go, which give something that is read: (filters,) bool, on the CPU.

    Where a filter is tied to a channel, both count as something unless both are nothing; so do all filters of a group and,
    where it alone reads them, all channels that it reads.
    """
    units = network.units
    read = _read(network)
    alive = {
        link.unit: ~silent(units[link.unit]).cpu() & read[link.target][: units[link.unit].filters]
        for link in network.links
        if link.unit in units
    }
    for link in network.links:
        if link.unit in units and units[link.unit].in_groups and not link.ties:
            alive |= _whole_groups(network, link, alive)
    ties = [link for link in network.links if link.ties and link.unit in units]
    for _ in ties:  # so often, since one may be tied to the next
        for link in ties:
            together = [other.unit for other in network.links if other.target == link.source and other.unit in units]
            any_of = torch.stack([alive[name] for name in (link.unit, *together)]).any(0)
            alive |= dict.fromkeys((link.unit, *together), any_of)
    return alive


def _whole_groups(network: Network, link: Link, alive: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what is alive of a unit in groups and of those that write what it reads, {unit: (filters,)}: whole groups only.

    Where its source has other writers or readers, all is alive.
    """
    unit = network.get_submodule(link.unit)
    writers = [other.unit for other in network.links if other.target == link.source]
    readers = [other for other in network.links if other.source == link.source]
    if len(writers) > 1 or len(readers) > 1 or writers[0] not in alive:
        return {name: torch.ones_like(alive[name]) for name in (link.unit, *writers) if name in alive}
    groups = (alive[link.unit] & unit.alive(torch.bool).cpu()).view(unit.groups, -1).any(1)
    return {name: groups.repeat_interleave(len(alive[name]) // unit.groups) for name in (link.unit, writers[0])}


def _read(network: Network) -> dict[str, Tensor]:
    """Return which channels of every node somebody reads, (channels,) bool: a column of zeros reads nothing.

    Once filters have been taken out, what is left counts as read.
    """
    widths, units = network.widths(), network.all_units
    taken_out = any(joint.width is not None for joint in network.joints.values())
    read = {node: torch.full((width,), taken_out or node in network.outputs) for node, width in widths.items()}
    for link in reversed(network.links):
        source, width = read[link.source], widths[link.source]
        if link.unit is None:
            source |= read[link.target][:width]
        elif link.ties or taken_out:
            source |= True
        elif units[link.unit].filters:  # once all of them have been taken out, it may have lost its columns too
            source |= _columns(units[link.unit])
    return read


def _columns(unit: Unit) -> Tensor:
    """Return which channels the unit's weights read, (channels,) bool, on the CPU; a group without a live filter reads none."""
    weight = unit.weight.flatten(2) if unit.weight.dim() > 2 else unit.weight.unsqueeze(2)
    read = (weight != 0).any(2).view(unit.groups, unit.filters // unit.groups, weight.shape[1]).any(1)
    if unit.groups > 1:
        read = read & (unit.alive(torch.bool) & ~silent(unit)).view(unit.groups, -1).any(1, keepdim=True)
    return read.flatten().cpu()
