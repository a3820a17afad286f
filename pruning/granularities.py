"""What is cut as one piece: how a weight splits into groups, and which units have any."""

from torch import Tensor

from models import Network, Unit


class Structured:
    """Whole filters of convolutions: a mask of shape (filters,)."""

    @staticmethod
    def units(network: Network) -> dict[str, Unit]:
        return network.units

    @staticmethod
    def groups(weight: Tensor) -> Tensor:
        """(filters, inputs, height, width) -> (filters, weights of a filter)."""
        return weight.flatten(1)


class Unstructured:
    """Single weights of convolutions and linear layers: a mask of the weight's shape."""

    @staticmethod
    def units(network: Network) -> dict[str, Unit]:
        return network.all_units

    @staticmethod
    def groups(weight: Tensor) -> Tensor:
        """(...) -> (..., 1): each weight is a group of its own."""
        return weight.unsqueeze(-1)


GRANULARITIES = {"structured": Structured, "unstructured": Unstructured}
