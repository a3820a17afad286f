"""A network and its wiring, which says how its units hang together."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from models.joint import Joint
from models.layers import Unit


@dataclass(frozen=True)
class Link:
    """One step of a network's wiring: a unit reads the channels of `source` and adds its own to those of `target`.

    A target with several writers is a residual stream: each but the first one names the joint, by its path in the
    model, that adds it. `unit` is the unit's path; None means a shortcut without parameters, which copies channel c of
    the source to channel c of the target.
    """

    unit: str | None
    source: str
    target: str
    joint: str | None = None


class Network(nn.Module):
    """A network with declared wiring: `links` in the order of execution, from "input" to "output"."""

    def __init__(self):
        super().__init__()
        self.links: list[Link] = []

    def wire(self, unit: str | None, source: str, target: str, joint: str | None = None) -> None:
        """Declare one step; the order of the calls is the order of execution."""
        self.links.append(Link(unit, source, target, joint))

    @property
    def all_units(self) -> dict[str, Unit]:
        """Every unit by its path, in the order of execution."""
        return {link.unit: self.get_submodule(link.unit) for link in self.links if link.unit is not None}

    @property
    def units(self) -> dict[str, Unit]:
        """The convolutions: the units that have filters to prune. The classifier's linear layers are not among them."""
        return {name: unit for name, unit in self.all_units.items() if unit.is_convolution}

    @property
    def joints(self) -> dict[str, Joint]:
        """Every residual joint by its path."""
        return {link.joint: self.get_submodule(link.joint) for link in self.links if link.joint is not None}

    def shapes(self) -> dict:
        """The widths and indices in force, as plain values: what `reshape` takes."""
        return {
            "units": {name: [unit.filters, unit.weight.shape[1]] for name, unit in self.all_units.items()},
            "joints": {name: joint.shape() for name, joint in self.joints.items() if joint.width is not None},
        }

    def reshape(self, shapes: dict) -> None:
        """Give every unit and joint these widths and indices, the values yet to be loaded. KeyError for another network's."""
        for name, unit in self.all_units.items():
            unit.resize(*shapes["units"][name])
        weight = next(self.parameters())
        for name, joint in self.joints.items():
            if name in shapes["joints"]:
                joint.place(**shapes["joints"][name])
                joint.to(weight.device, weight.dtype)

    @torch.no_grad()
    def folded(self, align: int | None = None) -> "Network":
        """A copy for deployment: batch norm folded into the layers, which then run in place. Evaluation mode only.

        A branch that writes by index gets rows of zeros for the other channels of its stream: a vector unit computes 16
        filters at once, so that these cost less than an indexed addition. `align` is for runtimes with kernels for
        blocks of channels: every tensor is filled up to a multiple with channels of zeros, and a stream has its last
        width from the start.
        """
        network = copy.deepcopy(self).eval()
        for unit in network.all_units.values():
            unit.fold()
        for link in network.links:
            if link.joint is not None:
                network.get_submodule(link.joint).fold(network.get_submodule(link.unit))
        if align is not None:
            network._fill_up(align)
        return network.requires_grad_(False).to(memory_format=torch.channels_last)

    def _fill_up(self, align: int) -> None:
        """Fill every tensor of a folded network up to a multiple of channels."""
        widths = self.widths()
        widths = {node: n if node in ("input", "output") else -(-n // align) * align for node, n in widths.items()}
        for link in self.links:
            if link.joint is not None:
                self.get_submodule(link.joint).width = widths[link.target]
            unit = link.unit and self.get_submodule(link.unit)
            # a branch without filters adds nothing
            if unit and (unit.filters or link.joint is None):
                unit.fill_up(widths[link.target], widths[link.source])

    def widths(self) -> dict[str, int]:
        """Channels of every node once all have written to it."""
        widths, units = {"input": 3}, self.all_units
        for link in self.links:
            wide = widths[link.source] if link.unit is None else units[link.unit].filters
            widths[link.target] = max(widths.get(link.target, 0), wide)
        return widths
