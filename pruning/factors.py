"""This file says what factors of layers cost, which ranks meet a budget, and puts the factors in place of the layers."""

import copy
from dataclasses import dataclass

import torch

from models import Network, Unit
from models.factorised import can_be_factorised, full_ranks, put_factors
from pruning.accounting import count, positions
from pruning.decomposition import evbmf, matrix_factors, relative_error, tucker_factors


@dataclass(frozen=True)
class Choice:
    """A choice says which layers are factorised: their `ranks`, by unit, and of each other layer the `reason` why it stays."""

    ranks: dict[str, list[int]]
    reasons: dict[str, str]


@dataclass(frozen=True)
class Layer:
    """A layer that may be factorised, with the pixels that it reads and that it writes for one image.

    `reason` says why it stays as it is whatever the ranks are; empty where it does not.
    """

    unit: Unit
    read: int
    written: int
    reason: str

    @classmethod
    def all_of(cls, network: Network, image_size: int, kernels: bool) -> dict[str, "Layer"]:
        """Return every layer of a network by its unit's path. Those of k x k pixels stay unless `kernels` is set."""
        written, read = positions(network, image_size), positions(network, image_size, read=True)
        layers = {}
        for name, unit in network.all_units.items():
            reason = (
                "" if can_be_factorised(unit) else "a convolution in groups" if unit.weight.numel() else "nothing is left of it"
            )
            if not reason and not kernels and _of_pixels(unit):
                reason = "svd is of 1x1 convolutions and linear layers"
            layers[name] = cls(unit, read[name], written[name], reason)
        return layers

    @property
    def full(self) -> list[int]:
        """The full ranks: two, of the channels and of the filters, where Tucker applies, and one of a matrix."""
        return full_ranks(self.unit, 2 if _of_pixels(self.unit) else 1)

    def at(self, fraction: float) -> list[int]:
        """Return this fraction of the full ranks, rounded down, and at least 1."""
        return [max(int(fraction * full + 1e-9), 1) for full in self.full]

    def estimated(self, weaken: float) -> list[int]:
        """Return the ranks that EVBMF finds, at least 1, or what lies a part `weaken` of the way from them to the full ranks."""
        weight = self.unit.weight.detach().cpu()  # where float64 is known, and ranks are the same on every device
        unfoldings = [weight.transpose(0, 1), weight] if len(self.full) == 2 else [weight]
        found = [max(evbmf(unfolding.flatten(1))[0], 1) for unfolding in unfoldings]
        return [round(rank + weaken * (full - rank)) for rank, full in zip(found, self.full, strict=True)]

    def saved(self, ranks: list[int]) -> dict[str, int]:
        """Return how many fewer parameters and MACs factors of these ranks have than the layer; below 0 where they have more."""
        filters, inputs, *kernel = self.unit.weight.shape
        size = torch.Size(kernel).numel()
        if len(ranks) == 2:
            parts = [
                (inputs * ranks[0], self.read),
                (ranks[0] * ranks[1] * size, self.written),
                (ranks[1] * filters, self.written),
            ]
        else:
            parts = [(ranks[0] * inputs * size, self.written), (ranks[0] * filters, self.written)]
        whole = self.unit.weight.numel()
        parameters = whole - sum(weights for weights, _ in parts)
        return {"parameters": parameters, "macs": whole * self.written - sum(weights * pixels for weights, pixels in parts)}

    def no_saving(self, ranks: list[int]) -> str:
        """Return the reason why a layer stays at these ranks, since its factors would not save work; empty where they would."""
        saved = self.saved(ranks)
        more = [word for name, word in (("macs", "MACs"), ("parameters", "parameters")) if saved[name] <= 0]
        return f"ranks {' and '.join(map(str, ranks))} would save no {' and no '.join(more)}" if more else ""


def _of_pixels(unit: Unit) -> bool:
    """Say whether a unit's kernel has more than one pixel, and is not that of a linear layer."""
    return not unit.is_linear and unit.weight.shape[2:].numel() > 1


def within(network: Network, image_size: int, layers: dict[str, Layer], what: str, limit: float) -> dict[str, list[int]]:
    """Return the ranks of the largest fraction of each full rank at which the network has at most `limit` of `what` left.

    `what` is "macs" or "parameters". Between the fractions at which some rank changes, what is left only grows, so that the last
    one that fits is found by bisection. ValueError where even ranks of 1 leave too much.
    """
    layers = {name: layer for name, layer in layers.items() if not layer.reason}
    whole = getattr(count(network, positions(network, image_size)), what)
    steps = sorted({rank / full for layer in layers.values() for full in layer.full for rank in range(1, full + 1)})

    def left(fraction: float) -> int:
        chosen = {name: layer.at(fraction) for name, layer in layers.items()}
        return whole - sum(layer.saved(chosen[name])[what] for name, layer in layers.items() if not layer.no_saving(chosen[name]))

    if not steps or left(steps[0]) > limit * whole:
        least = left(steps[0]) / whole if steps else 1.0
        words = "MACs" if what == "macs" else what
        raise ValueError(f"{limit:g} of the {words} cannot be reached: with all ranks at 1 {least:.4f} of them are left")
    low, high = 0, len(steps)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if left(steps[middle]) <= limit * whole else (low, middle)
    return {name: layer.at(steps[low]) for name, layer in layers.items()}


@torch.no_grad()
def factorised(network: Network, ranks: dict[str, list[int]]) -> tuple[Network, list[dict]]:
    """Return a copy of a network without gates in which factors of these ranks stand in place of the units named.

    Also returns a record for each of them: the layer, its ranks, the full ranks, and the relative error of its weight.
    """
    smaller, records = copy.deepcopy(network), []
    for name, chosen in ranks.items():
        weight = network.get_submodule(name).weight.detach().cpu()
        factors = tucker_factors(weight, chosen) if len(chosen) == 2 else matrix_factors(weight.flatten(1), chosen[0])
        full = full_ranks(network.get_submodule(name), len(chosen))
        put_factors(smaller, name, factors)
        records.append({"layer": name, "ranks": [*chosen], "of": full, "error": relative_error(weight, factors)})
    return smaller, records
