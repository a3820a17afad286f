"""This file finds the filters that are as good as removed without a mask: those that give exactly 0, or that nobody reads."""

import torch
from torch import Tensor

from models import Network, Unit
from pruning.channels import alone, read_by_some


def silent(unit: Unit) -> Tensor:
    """Return which filters give exactly 0 whatever they read, (filters,) bool.

    Their batch norm has scale and shift 0 or, where there is none, their weights and bias are 0.
    """
    if unit.norm is not None:
        return (unit.norm.weight == 0) & (unit.norm.bias == 0)
    zero = (unit.weight.flatten(1) == 0).all(1)
    return zero if unit.layer.bias is None else zero & (unit.layer.bias == 0)


@torch.no_grad()
def not_zero(network: Network, masks_read: bool = False) -> dict[str, Tensor]:
    """Return, for every unit, which filters give something that is read: (filters,) bool, on the CPU.

    Under a mask, or silent, a filter gives nothing; a column of zeros reads nothing, nor does a filter that itself gives nothing
    or is not read. What is left is the same before and after the others have been taken out. Where a filter is tied to a
    channel, both count as something unless both are nothing; so do all filters of a group, and all channels that it reads.
    With `masks_read`, filters under a mask count as if they gave and read something, unless they are in groups.
    """
    units = network.all_units
    kept = {name: ~silent(unit).cpu() for name, unit in network.units.items()}
    tied = {link.unit for link in network.links if link.ties}
    for name in kept:
        if not masks_read or (units[name].in_groups and name not in tied):
            kept[name] &= units[name].alive(torch.bool).cpu()
    columns = {name: _columns(unit) for name, unit in units.items()}

    def reads(name: str, live: Tensor) -> Tensor:
        unit = units[name]
        rows = (columns[name] & live[:, None]).view(unit.groups, len(live) // unit.groups, columns[name].shape[1])
        channels = rows.any(1).flatten()
        return channels if unit.gate is None or unit.gate.reads is None else channels & unit.gate.reads.cpu()

    held: dict[str, Tensor] = {}
    while True:
        live = read_by_some(network, kept, held, reads)
        together = _together(network, live)
        if all(torch.equal(mask, live[name]) for name, mask in together.items()):
            return live
        held |= together


def _columns(unit: Unit) -> Tensor:
    """Return by which weights, not 0, each filter reads, (filters, columns of the weight) bool, on the CPU."""
    weight = unit.weight.flatten(2) if unit.weight.dim() > 2 else unit.weight.unsqueeze(2)
    return (weight != 0).any(2).cpu()


def _together(network: Network, live: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what stays since it goes only together with something live, {unit: (filters,)}, of units of which that is so.

    A convolution in groups, whose source has other writers or readers, stays as a whole with all of these writers.
    """
    units, together = network.units, {}
    for link in network.links:
        if link.unit not in units or not (link.ties or units[link.unit].in_groups):
            continue
        unit = units[link.unit]
        names = [other.unit for other in network.links if other.target == link.source and other.unit in units]
        if link.ties:
            any_of = torch.stack([together.get(name, live[name]) for name in (link.unit, *names)]).any(0)
            together |= dict.fromkeys((link.unit, *names), any_of)
        elif alone(network, link):
            masks = {name: together.get(name, live[name]) for name in (link.unit, *names)}
            groups = torch.stack([mask.view(unit.groups, len(mask) // unit.groups).any(1) for mask in masks.values()]).any(0)
            together |= {name: groups.repeat_interleave(len(mask) // unit.groups) for name, mask in masks.items()}
        else:
            together |= {name: torch.ones_like(live[name]) for name in (link.unit, *names)}
    return together
