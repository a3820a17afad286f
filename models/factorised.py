"""This file puts a chain of units in place of one: what the factors of its weight compute, one after the other."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from models.layers import Unit, WholeMap


class Chain(nn.Sequential):
    """The units that stand in place of one, in the order of execution; they keep its path, followed by their own names.

    With two ranks, [R3, R4], they are those of Tucker-2 (Kim et al., 2016, arXiv 1511.06530): `first`, 1x1 from S channels to
    R3, `core`, DxD from R3 to R4 with the stride, padding and dilation, and `last`, 1x1 from R4 to T filters. With one rank, [R],
    they are the two factors of a matrix: `first` with the layer's own kernel and geometry to R, and `last`, 1x1 or linear, to
    T. Only `last` has what followed the layer: its bias, batch norm, ReLU and dropout; dropout of its inputs is that of `first`.
    """


def can_be_factorised(unit: Unit) -> bool:
    """Say whether one matrix or kernel maps all channels of the unit to all its filters, so that it is no layer in groups."""
    return not unit.in_groups and unit.groups == 1 and unit.weight.numel() > 0


def full_ranks(unit: Unit, ranks: int) -> list[int]:
    """Return the largest ranks that a unit can have: [S, T] where there are two of them, [the smaller of both sides] for one."""
    filters, inputs = unit.weight.shape[:2]
    return [inputs, filters] if ranks == 2 else [min(filters, unit.weight[0].numel())]


def take_apart(network, name: str, ranks: list[int]) -> None:
    """Put a chain of these ranks in place of a unit of the network; its factors' values are yet to be loaded.

    Batch norm stays as it is, behind the last factor. The unit has no gate.
    """
    unit = network.get_submodule(name)
    chain = Chain()
    for part, factor in _factors(unit, ranks).items():
        chain.add_module(part, factor)
    network.set_submodule(name, chain.train(unit.training))
    position = next(number for number, link in enumerate(network.links) if link.unit == name)
    link, links = network.links[position], []
    for part in dict(chain.named_children()):
        source = links[-1].target if links else link.source
        links.append(replace(link, unit=f"{name}.{part}", source=source, target=f"{name}.{part}", joint=None))
    links[-1] = replace(links[-1], target=link.target, joint=link.joint)
    network.links[position : position + 1] = links
    network.factors[name] = list(ranks)


def _factors(unit: Unit, ranks: list[int]) -> dict[str, Unit]:
    """Return the units of a chain, by their names."""
    filters, inputs = unit.weight.shape[:2]
    widths = [inputs, *ranks, filters]
    layers = {"first": _wide(unit, ranks[0])} if len(ranks) == 1 else {"first": _narrow(unit, inputs, ranks[0])}
    if len(ranks) == 2:
        layers["core"] = _wide(unit, ranks[1], ranks[0])
    factors = {part: Unit(layer, norm=False, activation=False) for part, layer in layers.items()}
    last = Unit(_narrow(unit, widths[-2], filters, bias=unit.layer.bias), norm=False, activation=unit.activation)
    factors["last"], last.norm = last, unit.norm
    dropping = factors["first" if unit.drops_inputs else "last"]
    dropping.dropout, dropping.drops_inputs = unit.dropout, unit.drops_inputs
    return factors


def _wide(unit: Unit, outputs: int, inputs: int | None = None) -> nn.Module:
    """Return a layer without bias of the unit's own kernel and geometry, with other numbers of filters and channels."""
    layer, inputs = unit.layer, unit.weight.shape[1] if inputs is None else inputs
    where = {"device": unit.weight.device, "dtype": unit.weight.dtype}
    if not unit.is_convolution:
        return nn.Linear(inputs, outputs, bias=False, **where)
    if isinstance(layer, WholeMap):
        return _whole_map(inputs, outputs, layer.kernel_size[0], where)
    geometry = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    return nn.Conv2d(inputs, outputs, layer.kernel_size, bias=False, **geometry, **where)


def _narrow(unit: Unit, inputs: int, outputs: int, bias: Tensor | None = None) -> nn.Module:
    """Return a layer that mixes channels at each pixel by itself, with this bias or without one."""
    where = {"device": unit.weight.device, "dtype": unit.weight.dtype}
    if not unit.is_convolution:
        layer = nn.Linear(inputs, outputs, bias=False, **where)
    elif isinstance(unit.layer, WholeMap):
        layer = _whole_map(inputs, outputs, 1, where)
    else:
        layer = nn.Conv2d(inputs, outputs, 1, bias=False, **where)
    layer.bias = bias
    return layer


def _whole_map(inputs: int, outputs: int, size: int, where: dict) -> WholeMap:
    layer = WholeMap(inputs, outputs, size).to(**where)
    layer.bias = None
    return layer


@torch.no_grad()
def put_factors(network, name: str, factors: list[Tensor]) -> None:
    """Put a chain in place of a unit, with these weights, first to last, each in the shape of its layer's."""
    ranks = [len(factor) for factor in factors[:-1]]
    take_apart(network, name, ranks)
    for unit, factor in zip(network.get_submodule(name), factors, strict=True):
        unit.layer.weight.copy_(factor.reshape(unit.weight.shape))
