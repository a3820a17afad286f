"""This file defines a network and its wiring, which says how the network's units hang together."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.factorised import take_apart
from models.joint import DropPath, Joint
from models.layers import Unit
from models.parts import Dropout
from models.shapes import check_factors, check_ranks, check_shapes, check_values
from settings.registry import NETWORKS


@dataclass(frozen=True)
class Link:
    """One step of a network's wiring: a unit reads the channels of `source` and adds its own to those of `target`.

    A target that several units write to is a residual stream: each writer but the first names the joint, by its path
    in the model, that adds it. `unit` is the unit's path; None means a shortcut without parameters, which copies channel c of
    the source to channel c of the target. `ties="channel"` says that the unit's filter c reads channel c of the source
    and no other, as in a depthwise convolution or a learned scale of each channel.
    """

    unit: str | None
    source: str
    target: str
    joint: str | None = None
    ties: str | None = None


class Network(nn.Module):
    """A network with declared wiring: `links` in the order of execution, from "input" to its `outputs`.

    `outputs` are the nodes that `forward` returns, a tensor for one of them and a tuple for several; `placing` are those of
    them that have nothing to do with the classes. `input_channels` is that of the images. `storable` is False for a copy that
    a form has changed beyond what `shapes` tells. With `linear_too` the neurons of hidden linear layers are filters that may
    be removed, as those of convolutions are. `factors` are the ranks of each unit in whose place a chain of units stands
    (models/factorised.py), in the order in which they were put there. `begins` names the units at which a new part of the
    network begins where it is pruned part by part, where a paper says so.
    """

    outputs: tuple[str, ...] = ("output",)
    placing: tuple[str, ...] = ()
    begins: tuple[str, ...] = ()

    def __init__(self):
        super().__init__()
        self.links: list[Link] = []
        self.input_channels: int | None = None
        self.storable = True
        self.linear_too = False
        self.factors: dict[str, list[int]] = {}

    def wire(self, unit: str | None, source: str, target: str, joint: str | None = None, ties: str | None = None) -> None:
        """Declare one step of the wiring, of a unit that the network already has. Steps are executed in the order of the calls.

        ValueError for ties that are unknown, or that the unit cannot have.
        """
        link = Link(unit, source, target, joint, ties)
        if ties is not None:
            _check_ties(link, self.get_submodule(unit))
        if source == "input" and unit is not None and self.input_channels is None:
            reader = self.get_submodule(unit)
            self.input_channels = reader.weight.shape[1] * reader.groups
        self.links.append(link)

    @property
    def all_units(self) -> dict[str, Unit]:
        """Every unit by its path, in the order of execution."""
        return {link.unit: self.get_submodule(link.unit) for link in self.links if link.unit is not None}

    @property
    def last_units(self) -> dict[str, Unit]:
        """The units that write an output, by path: of a classifier its last layer, of a detector its heads."""
        return {link.unit: self.get_submodule(link.unit) for link in self.links if link.unit and link.target in self.outputs}

    @property
    def units(self) -> dict[str, Unit]:
        """The layers whose filters may be removed: all convolutions but those that must write every channel of an output.

        With `linear_too` they are these and the linear layers but those.
        """
        whole = self._whole_nodes()
        units = {link.unit: self.get_submodule(link.unit) for link in self.links if link.unit and link.target not in whole}
        return {name: unit for name, unit in units.items() if self.linear_too or not unit.is_linear}

    @property
    def prunable_convolutions(self) -> dict[str, Unit]:
        """Those of `units` that are no linear layers."""
        return {name: unit for name, unit in self.units.items() if not unit.is_linear}

    def parts(self, number: int) -> list[list[str]]:
        """Divide the prunable convolutions, in the order of execution, into so many sets of consecutive ones.

        They begin where `begins` says, where that makes as many, and otherwise are of about the same length. ValueError where
        there are fewer convolutions.
        """
        names = list(self.prunable_convolutions)
        if number > len(names):
            raise ValueError(f"{number} parts of a network that has {len(names)} prunable convolutions")
        starts = [0, *(names.index(name) for name in self.begins if name in names)]
        if len(starts) != number:
            starts = [part * len(names) // number for part in range(number)]
        return [names[start:end] for start, end in zip(starts, [*starts[1:], len(names)], strict=True)]

    def part(self, number: int, of: int) -> list[str]:
        """Return one of the parts of the network, which are numbered from 1. ValueError if there is no such part."""
        if type(number) is not int or type(of) is not int or not 1 <= number <= of:
            raise ValueError(f"there is no part {number} of {of}")
        return self.parts(of)[number - 1]

    def with_readers(self, names: list[str]) -> set[str]:
        """Return these units together with those that read what they write."""
        written = {link.target for link in self.links if link.unit in names}
        return {*names, *(link.unit for link in self.links if link.unit and link.source in written)}

    @property
    def joints(self) -> dict[str, Joint]:
        """Every residual joint by its path."""
        return {link.joint: self.get_submodule(link.joint) for link in self.links if link.joint is not None}

    @property
    def branches(self) -> dict[str, list[Unit]]:
        """The units of every residual branch, in the order of execution, by the path of the joint that adds it."""
        readers = Counter(link.source for link in self.links)
        writers = {node: [link for link in self.links if link.target == node] for node in readers}
        branches = {}
        for link in self.links:
            units, last = [], link
            while link.joint and last.unit is not None:
                units.insert(0, self.get_submodule(last.unit))
                before = writers.get(last.source, [])
                if len(before) != 1 or readers[last.source] > 1:
                    break  # a stream, from which the branch begins
                last = before[0]
            if link.joint:
                branches[link.joint] = units
        return branches

    def _whole_nodes(self) -> set[str]:
        """Return the nodes that keep all channels.

        They are the outputs, what is copied or tied to them, and what is tied to the images.
        """
        whole, size = set(self.outputs), 0
        while size < len(whole):
            size = len(whole)
            holding = whole | {"input"}  # and the streams that a copy of them is added to
            for link in self.links:
                if link.unit is None and link.source in holding:
                    holding.add(link.target)
            for link in reversed(self.links):
                if link.ties and (link.source in holding or link.target in whole):
                    whole |= {link.source, link.target}
                elif link.unit is None and link.target in whole:
                    whole.add(link.source)
        return whole

    def shapes(self) -> dict:
        """Return the widths and indices in force, as plain values that `reshape` takes.

        Of a unit they are its filters, the columns of its weight and, for one in groups that are not ties, its groups. A network
        of which units were taken apart has their ranks at that time, as "factors".
        """
        tied, units = {link.unit for link in self.links if link.ties}, self.all_units
        factors = {"factors": {name: [*ranks] for name, ranks in self.factors.items()}} if self.factors else {}
        return {
            "units": {
                name: [unit.filters, unit.weight.shape[1], *([unit.groups] if unit.in_groups and name not in tied else [])]
                for name, unit in units.items()
            },
            "joints": {name: joint.shape() for name, joint in self.joints.items() if joint.width is not None},
            **factors,
        }

    def reshape(self, shapes: dict) -> None:
        """Give every unit and joint the widths and indices in `shapes`; the values are yet to be loaded.

        A joint without an entry has no index afterwards; units with "factors" are taken apart first, unless they are already.
        Unfit, a ValueError, for shapes that are none of this network, which is whole.
        """
        for name, ranks in check_factors(self, shapes).items():
            check_ranks(self, name, ranks)
            take_apart(self, name, ranks)
        check_shapes(self, shapes)
        for link in self.links:
            if link.unit is not None:
                filters, inputs, *groups = shapes["units"][link.unit]
                self.get_submodule(link.unit).resize(filters, inputs, filters if link.ties else next(iter(groups), None))
        weight = next(self.parameters())
        for name, joint in self.joints.items():
            joint.place(**shapes["joints"].get(name, {}))
            joint.to(weight.device, weight.dtype)

    def take(self, tensors: dict) -> None:
        """Give every parameter and buffer its value in `tensors`. Unfit, a ValueError, for another network's."""
        check_values(self.state_dict(), tensors, "model")
        self.load_state_dict(tensors)

    def train_without_dropout(self) -> None:
        """Go into training mode, as for batch norm to take its batches' statistics, but drop no number and no branch."""
        self.train()
        for module in self.modules():
            if isinstance(module, Dropout | DropPath):
                module.eval()

    def widths(self) -> dict[str, int]:
        """Return {node: number of channels} once all units have written to it."""
        widths = {"input": self.input_channels}
        for link in self.links:
            width = widths[link.source] if link.unit is None else self._reach(link)
            widths[link.target] = max(widths.get(link.target, 0), width)
        return widths

    def _reach(self, link: Link) -> int:
        """Return how many channels the target of a link has when the link's unit has written to it."""
        width = self.get_submodule(link.joint).width if link.joint else None
        return self.get_submodule(link.unit).filters if width is None else width

    def written(self, link: Link) -> tuple[Tensor, int]:
        """Return which channels of the target a link's unit writes to, (filters,) int64, and how many the target has by then.

        A unit's filters write the first channels in their order, unless removal has given its joint an index.
        """
        index, width = self.get_submodule(link.joint).index if link.joint else None, self._reach(link)
        return torch.arange(width) if index is None else index.cpu(), width


def _check_ties(link: Link, unit: Unit) -> None:
    """Raise ValueError unless filter c of this unit can read channel c alone."""
    if link.ties != "channel":
        raise ValueError(f"'{link.unit}' has ties '{link.ties}': there is only 'channel', filter c reads channel c")
    if link.joint is not None:
        raise ValueError(f"'{link.unit}' ties its filters to its channels, and so cannot be the last one of a residual branch")
    if unit.weight.shape[1] != 1 or unit.groups != unit.filters:
        raise ValueError(f"'{link.unit}' ties filter c to channel c: its groups, filters and channels must be as many")


def build(name: str, **options) -> Network:
    """Build the network of this name with fresh weights; `options` are those of its function, such as `classes`.

    `size`, the pixels of a side of the images, is passed on only to a network that depends on it. ValueError for a name or an
    option that is unknown.
    """
    if "size" not in NETWORKS.entry(name).options:
        options.pop("size", None)
    return NETWORKS.get(name)(**options)
