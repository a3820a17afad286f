"""This file counts the filters, parameters and multiply-accumulates of a network, dense and with what masks cut removed.

A MAC is one multiplication with its addition. Convolutions and linear layers have MACs; batch norm, additions and biases
have none. Parameters are weights, biases, and batch norm's scale and shift, but not the parameters of gates. `filters` are
those that may be removed, so not those of the outputs. Everything is read from the wiring.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models import Network, Unit
from pruning.channels import follow
from pruning.zeros import not_zero


@dataclass(frozen=True)
class Count:
    """A count says what a network holds, or what removal would leave of it."""

    filters: int
    parameters: int
    macs: int


@torch.no_grad()
def positions(network: Network, image_size: int, read: bool = False) -> dict[str, int]:
    """Return {unit: pixels that it writes for one square image}: height * width, and 1 for a linear layer.

    With `read` they are those of what the unit reads.
    """
    pixels, hooks = {}, []

    def see(name: str, x: Tensor, y: Tensor) -> None:
        pixels[name] = (x if read else y).shape[2:].numel()

    for name, unit in network.all_units.items():
        hooks.append(unit.register_forward_hook(lambda _, inputs, y, name=name: see(name, inputs[0], y)))
    training, weight = network.training, next(network.parameters())
    image = torch.zeros(1, network.input_channels, image_size, image_size, device=weight.device, dtype=weight.dtype)
    network.eval()(image)
    network.train(training)
    for hook in hooks:
        hook.remove()
    return pixels


def filter_masks(network: Network, masks_read: bool = False) -> dict[str, Tensor]:
    """Return which filters are in force, {unit: (filters,) bool, on the CPU}, of every convolution whose filters may go.

    The others are under a mask, whatever masks them, or are as good as removed by exact zeros, or since nobody reads them; see
    `zeros.not_zero`. With `masks_read`, what is read by filters under a mask alone is in force. Where gates say which inputs a
    unit reads, nothing else is, and linear layers are among the units.
    """
    units = network.all_units
    plain = all(unit.gate is None or unit.gate.reads is None for unit in units.values())
    live = not_zero(network, masks_read and plain)
    live = {name: live[name] for name in network.units} if plain else live
    # what is masked may count as something, together with what is not
    return {name: mask & units[name].alive(torch.bool).cpu() for name, mask in live.items()}


def kept_filters(network: Network) -> dict[str, int]:
    """Return how many filters are in force of every convolution whose filters may go, also where masked ones alone read them."""
    masks = filter_masks(network, masks_read=True)
    return {name: int(masks[name].sum()) for name in network.units}


def count(network: Network, pixels: dict[str, int]) -> Count:
    """Count what a network holds, as if it had no masks; `pixels` are its `positions`."""
    units = network.all_units
    return Count(
        filters=sum(unit.filters for unit in network.units.values()),
        parameters=sum(_parameters(unit) for unit in units.values()),
        macs=sum(unit.weight.numel() * pixels[name] for name, unit in units.items()),
    )


def removed(network: Network, kept: dict[str, Tensor], pixels: dict[str, int]) -> Count:
    """Count what remains once the filters not in `kept`, {unit: (filters,) bool}, are taken out; see `channels.follow`.

    Any filter may go: the last convolution of a branch writes those that stay into its stream by index. A unit all of
    whose inputs are gone keeps its bias and batch norm, and has no MACs. ValueError for masks that `follow` refuses.
    """
    units, prunable, channels = network.all_units, network.units, follow(network, kept)
    filters = parameters = macs = 0
    for name, stay in channels.filters.items():
        unit, outputs = units[name], len(stay)
        weights = outputs * len(channels.inputs[name]) * unit.weight.shape[2:].numel()
        parameters += weights + outputs * _vectors(unit)
        macs += weights * pixels[name]
        filters += outputs if name in prunable else 0
    return Count(filters, parameters, macs)


def nonzero(network: Network, pixels: dict[str, int]) -> Count:
    """Count the weights that no mask makes zero, and their MACs, though no dense kernel is faster for them.

    `filters` are those with a weight that is not zero.
    """
    full, units = count(network, pixels), network.all_units
    masked = {name: masked_weights(unit) for name, unit in units.items()}
    filters = sum(kept_filters(network).values())
    macs = full.macs - sum(weights * pixels[name] for name, weights in masked.items())
    return Count(filters, full.parameters - sum(masked.values()), macs)


def masked_weights(unit: Unit) -> int:
    """Return how many weights are behind the zeros of a unit's mask; every entry of the mask stands for equally many."""
    if unit.gate is None:
        return 0
    kept = unit.gate.decide()
    return int((~kept).sum()) * (unit.weight.numel() // kept.numel())


def connections(units: dict[str, Unit]) -> dict[str, dict[str, int]]:
    """Return of each unit how many weights no mask makes zero ("left"), and how many there are ("of")."""
    totals = {name: unit.weight.numel() for name, unit in units.items()}
    return {name: {"left": total - masked_weights(units[name]), "of": total} for name, total in totals.items()}


def dense(network: Network, image_size: int) -> Count:
    """Count the network without its masks, for images of `image_size` pixels a side."""
    return count(network, positions(network, image_size))


def remaining(network: Network, image_size: int) -> Count:
    """Count what remains under the masks now in force: `removed` where they are on whole filters, else `nonzero`."""
    pixels = positions(network, image_size)
    if all(unit.gate is None or unit.gate.by_filter for unit in network.all_units.values()):
        return removed(network, filter_masks(network), pixels)
    return nonzero(network, pixels)


def zeros(network: Network) -> tuple[int, int]:
    """Return num_zero and num_total as the paper's code printed them: weights under a mask, and all weights and biases."""
    units = network.all_units.values()
    return sum(masked_weights(unit) for unit in units), sum(_parameters(unit) for unit in units)


def _parameters(unit: Unit) -> int:
    parts = (unit.layer,) if unit.norm is None else (unit.layer, unit.norm)
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


def _vectors(unit: Unit) -> int:
    """Return how many parameters a filter has beside its weights: a bias, batch norm's scale and shift."""
    return (unit.layer.bias is not None) + 2 * (unit.norm is not None)
