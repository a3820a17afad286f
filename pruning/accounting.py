"""Counting: the filters, parameters and multiply-accumulates of a network, dense and with what masks cut removed.

Conventions: a MAC is one multiplication with its addition; convolutions and linear layers count, batch norm, additions
and biases do not. Parameters are weights, biases, and batch norm's scale and shift. Everything is read from the wiring.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models import Network, Unit


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
        hooks.append(unit.register_forward_hook(lambda _, __, y, name=name: found.update({name: y[0, 0].numel()})))
    training, weight = network.training, next(network.parameters())
    network.eval()(torch.zeros(1, channels, image_size, image_size, device=weight.device, dtype=weight.dtype))
    network.train(training)
    for hook in hooks:
        hook.remove()
    return found


def filter_masks(network: Network) -> dict[str, Tensor]:
    """The filters in force of every convolution, (filters,) bool on the CPU, whatever the mask's kind."""
    every = {name: torch.ones(unit.filters) if unit.live is None else unit.live for name, unit in network.units.items()}
    return {name: live.bool().cpu() for name, live in every.items()}


def _needed(network: Network, kept: dict[str, Tensor]) -> set[str]:
    """Units that the output still depends on: a branch whose last convolution is empty goes as a whole."""
    needed, read = set(), {"output"}
    for link in reversed(network.links):
        if link.target not in read or (link.unit in kept and not kept[link.unit].any()):
            continue
        read.add(link.source)
        if link.unit is not None:
            needed.add(link.unit)
    return needed


def live_inputs(network: Network, kept: dict[str, Tensor]) -> dict[str, Tensor]:
    """The channels that each unit still reads, (channels,) bool, once the filters not in `kept` are taken out.

    `kept` is {unit: (filters,) bool}; a unit without an entry keeps all. Units that the output no longer depends on are
    left out of the answer. A consumer reads the channels of its source that somebody has written by then.
    """
    needed, inputs = _needed(network, kept), {}
    live = {"input": torch.ones(3, dtype=torch.bool)}
    for link in network.links:
        written = live.get(link.source)
        if link.unit is None:
            if written is not None:
                live[link.target] = _merge(live.get(link.target), written, _width(network, link.target))
        elif link.unit in needed:
            unit = network.get_submodule(link.unit)
            # a source that nobody has written to is a layer without a filter left
            inputs[link.unit] = torch.zeros(unit.weight.shape[1], dtype=torch.bool) if written is None else written
            live[link.target] = _merge(live.get(link.target), _keep(unit, link.unit, kept), unit.filters)
    return inputs


def _keep(unit: Unit, name: str, kept: dict[str, Tensor]) -> Tensor:
    return kept[name] if name in kept else torch.ones(unit.filters, dtype=torch.bool)


def removed(network: Network, kept: dict[str, Tensor], image_size: int) -> Count:
    """What is left once the filters not in `kept` are taken out; see `live_inputs`.

    Any filter may go: the last convolution of a branch writes the rest into its stream by index. A unit all of whose
    inputs are gone writes one constant a filter: that many parameters, no MACs.
    """
    pixels = positions(network, image_size)
    filters = parameters = macs = 0
    for name, live in live_inputs(network, kept).items():
        unit = network.get_submodule(name)
        inputs, outputs = int(live.sum()), int(_keep(unit, name, kept).sum())
        weights = inputs * outputs * unit.weight[0, 0].numel()
        parameters += weights + outputs * _vectors(unit) if inputs else outputs
        macs += weights * pixels[name]
        filters += outputs if unit.is_convolution else 0
    return Count(filters, parameters, macs)


def _width(network: Network, node: str) -> int:
    """Channels of a stream: those of its writers that have weights."""
    return max(network.get_submodule(link.unit).filters for link in network.links if link.target == node and link.unit)


def _merge(live: Tensor | None, written: Tensor, width: int) -> Tensor:
    """Channels written so far, with another writer's."""
    merged = torch.zeros(width, dtype=torch.bool) if live is None else live.clone()
    merged[: len(written)] |= written
    return merged


def _vectors(unit: Unit) -> int:
    """Parameters a filter has beside its weights: a bias, batch norm's scale and shift."""
    return (unit.layer.bias is not None) + 2 * (unit.norm is not None)


def dense(network: Network, image_size: int) -> Count:
    """The network without masks."""
    return removed(network, {}, image_size)


def remaining(network: Network, image_size: int) -> Count:
    """What is left of the network under the masks now in force.

    Filters: after removal. Single weights: those that are not zero, and their MACs, though no dense kernel is faster
    for them.
    """
    gates = {name: unit.gate for name, unit in network.all_units.items() if unit.gate is not None}
    if all(gate.mask.dim() == 1 for gate in gates.values()):
        return removed(network, filter_masks(network), image_size)
    full, pixels = dense(network, image_size), positions(network, image_size)
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
