"""Counting: the filters, parameters and multiply-accumulates of a network, dense and with what masks cut removed.

Conventions: a MAC is one multiplication with its addition; convolutions and linear layers count, batch norm, additions
and biases do not. Parameters are weights, biases, and batch norm's scale and shift. Everything is read from the wiring.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models import Network, Unit
from pruning.channels import follow


@dataclass(frozen=True)
class Count:
    """What a network holds, or what would be left of it."""

    filters: int
    parameters: int
    macs: int


@torch.no_grad()
def positions(network: Network, image_size: int, channels: int = 3) -> dict[str, int]:
    """Output pixels of every unit for one image: height * width, 1 for a linear layer."""
    found, hooks = {}, []
    for name, unit in network.all_units.items():
        hooks.append(unit.register_forward_hook(lambda _, __, y, name=name: found.update({name: y.shape[2:].numel()})))
    training, weight = network.training, next(network.parameters())
    network.eval()(torch.zeros(1, channels, image_size, image_size, device=weight.device, dtype=weight.dtype))
    network.train(training)
    for hook in hooks:
        hook.remove()
    return found


def filter_masks(network: Network) -> dict[str, Tensor]:
    """The filters in force of every convolution, (filters,) bool on the CPU, whatever the mask's kind."""
    return {name: unit.alive(torch.bool).cpu() for name, unit in network.units.items()}


def count(network: Network, pixels: dict[str, int]) -> Count:
    """What a network holds as it stands, masks aside; `pixels` are its `positions`."""
    units = network.all_units
    return Count(
        filters=sum(unit.filters for unit in network.units.values()),
        parameters=sum(parameter.numel() for unit in units.values() for parameter in unit.parameters()),
        macs=sum(unit.weight.numel() * pixels[name] for name, unit in units.items()),
    )


def removed(network: Network, kept: dict[str, Tensor], pixels: dict[str, int]) -> Count:
    """What is left once the filters not in `kept`, {unit: (filters,) bool}, are taken out; see `channels.follow`.

    Any filter may go: the last convolution of a branch writes the rest into its stream by index. A unit all of whose
    inputs are gone keeps its bias and batch norm, and has no MACs.
    """
    units, channels = network.all_units, follow(network, kept)
    filters = parameters = macs = 0
    for name, left in channels.filters.items():
        unit, outputs = units[name], len(left)
        weights = outputs * len(channels.inputs[name]) * unit.weight[0, 0].numel()
        parameters += weights + outputs * _vectors(unit)
        macs += weights * pixels[name]
        filters += outputs if unit.is_convolution else 0
    return Count(filters, parameters, macs)


def _vectors(unit: Unit) -> int:
    """Parameters a filter has beside its weights: a bias, batch norm's scale and shift."""
    return (unit.layer.bias is not None) + 2 * (unit.norm is not None)


def dense(network: Network, image_size: int) -> Count:
    """The network without masks."""
    return count(network, positions(network, image_size))


def remaining(network: Network, image_size: int) -> Count:
    """What is left of the network under the masks now in force.

    Filters: after removal. Single weights: those that are not zero, and their MACs, though no dense kernel is faster
    for them.
    """
    gates = {name: unit.gate for name, unit in network.all_units.items() if unit.gate is not None}
    pixels = positions(network, image_size)
    if all(gate.mask.dim() == 1 for gate in gates.values()):
        return removed(network, filter_masks(network), pixels)
    full = count(network, pixels)
    zeros = {name: int((gate.mask == 0).sum()) for name, gate in gates.items()}
    filters = sum(int(live.sum()) for live in filter_masks(network).values())
    return Count(filters, full.parameters - sum(zeros.values()), full.macs - sum(z * pixels[name] for name, z in zeros.items()))


def zeros(network: Network) -> tuple[int, int]:
    """num_zero and num_total as the paper's code printed them: weights under a mask, and all weights and biases."""
    zero = sum(
        int((unit.gate.mask == 0).sum()) * (unit.weight.numel() // unit.gate.mask.numel())
        for unit in network.all_units.values()
        if unit.gate is not None
    )
    return zero, sum(parameter.numel() for parameter in network.parameters())
