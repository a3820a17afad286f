"""This file says what may be cut as one piece. Each public class is a choice of --prune_type, by its name in lower case."""

from collections.abc import Callable
from typing import Annotated

from torch import Tensor

from models import Network, Unit
from pruning import accounting
from pruning.accounting import Count
from pruning.gates.mask import Mask
from pruning.gates.weight import Weight


class _Granularity:
    """A granularity answers these questions. This base splits the weight by its first dimensions, and counts single weights."""

    removable = False  # whether what is masked can be taken out: whole filters only

    @classmethod
    def units(cls, network: Network) -> dict[str, Unit]:
        """Return the units that get a mask, by their paths. ValueError for a network that cannot be pruned so."""
        return network.all_units

    @classmethod
    def groups(cls, weight: Tensor) -> Tensor:
        """Return the weight as (pieces..., weights of a piece), where pieces... is the mask's shape."""
        raise NotImplementedError

    @classmethod
    def shape(cls, unit: Unit) -> tuple[int, ...]:
        """Return the shape of a unit's mask and of its scores."""
        return tuple(cls.groups(unit.weight).shape[:-1])

    @classmethod
    def gate(cls, unit: Unit, make: Callable[..., Mask]) -> Mask:
        """Return a new mask for a unit. `make` is what --prune_gate names, which decides where there is a choice."""
        return Weight(cls.shape(unit), unit.weight.device)

    @classmethod
    def zeros(cls, unit: Unit) -> int:
        """Return how many weights are behind the zeros of a unit's mask, as num_zero counts them."""
        return accounting.masked_weights(unit)

    @classmethod
    def count(cls, network: Network, pixels: dict[str, int]) -> Count:
        """Count what remains of the network under its masks; `pixels` are its `accounting.positions`."""
        return accounting.nonzero(network, pixels)


class Structured(_Granularity):
    """Whole filters of convolutions: a mask of shape (filters,)."""

    removable: Annotated[bool, "whole filters"] = True

    @classmethod
    def units(cls, network: Network) -> dict[str, Unit]:
        return network.units

    @classmethod
    def groups(cls, weight: Tensor) -> Tensor:
        """(filters, inputs, height, width) -> (filters, weights of a filter)."""
        return weight.flatten(1)

    @classmethod
    def gate(cls, unit: Unit, make: Callable[..., Mask]) -> Mask:
        return make(cls.shape(unit), unit.weight.device)

    @classmethod
    def count(cls, network: Network, pixels: dict[str, int]) -> Count:
        return accounting.removed(network, accounting.filter_masks(network), pixels)


class Unstructured(_Granularity):
    """Single weights of convolutions and linear layers: a mask of the weight's shape."""

    @classmethod
    def groups(cls, weight: Tensor) -> Tensor:
        """(...) -> (..., 1): each weight is a piece of its own."""
        return weight.unsqueeze(-1)


class Kernels(_Granularity):
    """The k x k slices of convolutions, by which a filter reads one channel: a mask of shape (filters, inputs)."""

    @classmethod
    def units(cls, network: Network) -> dict[str, Unit]:
        return {name: unit for name, unit in network.all_units.items() if not unit.is_linear}

    @classmethod
    def groups(cls, weight: Tensor) -> Tensor:
        """(filters, inputs, height, width) -> (filters, inputs, weights of a kernel)."""
        return weight.flatten(2)
