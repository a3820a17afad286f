"""This file lists the layers of a network in the order in which they are cut and repaired; it reads the wiring alone."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from models import Network
from pruning.groups import same_channels
from settings.registry import RECONSTRUCTIONS


@dataclass(frozen=True)
class Layer:
    """A layer is what is cut and repaired in one step, told by the paths of units.

    Of the units in `chosen`, one and those that are tied to it, a method chooses which filters stay. Those in `fixed` write
    residual streams, and keep what the criterion chose. `readers` read what is left, and are repaired.
    """

    chosen: tuple[str, ...]
    fixed: tuple[str, ...]
    readers: tuple[str, ...]

    @property
    def units(self) -> tuple[str, ...]:
        return self.chosen + self.fixed

    @property
    def name(self) -> str:
        return self.units[0]


def layers_for(network: Network, method: str, whole: Collection[str] = ()) -> list[Layer]:
    """List the layers that a method cuts: all of them or, for one that is for hidden layers, those that it chooses from.

    The units in `whole` are in no layer, and where a layer had no others, it is left out.
    """
    layers = layers_of(network)
    if "hidden layers" in RECONSTRUCTIONS.entry(method).traits:
        layers = [replace(layer, fixed=()) for layer in layers if layer.chosen]
    if not whole:
        return layers
    left = [replace(layer, chosen=_others(layer.chosen, whole), fixed=_others(layer.fixed, whole)) for layer in layers]
    return [layer for layer in left if layer.chosen or layer.fixed]


def _others(names: tuple[str, ...], whole: Collection[str]) -> tuple[str, ...]:
    """Return the names that are not in `whole`."""
    return tuple(name for name in names if name not in whole)


def layers_of(network: Network) -> list[Layer]:
    """List the layers of a network in the order of its wiring.

    A unit is chosen from where it alone writes its channels and nothing is added to them. What is in groups, and what writes
    for it, is cut as a criterion says in the layer that reads the groups. The writers of a stream are cut in
    the first layer that sees the stream, because a reader reads it or adds to it. All that read a stream between two of its
    writers are one layer. ValueError for a unit that is read by nothing whose weights could be solved for.
    """
    units, prunable, root = network.all_units, network.units, same_channels(network)
    alone = {name: members for name in {*root.values()} if (members := _alone(network, root, name))}
    chosen, fixed, readers, order = {}, {}, {}, []
    writers: dict[str, list[str]] = {}  # of each node so far, the units that a criterion cuts
    writes: dict[str, int] = {}
    cut = {unit for members in alone.values() for unit in members}
    for link in network.links:
        by_itself, source = alone.get(root[link.source], ()), writers.get(link.source, [])
        if link.unit is None or link.ties or units[link.unit].in_groups:
            # whoever reads the target sees the writers of the source too
            writers[link.target] = [*writers.get(link.target, []), *source]
        elif by_itself or source:
            layer = (root[link.source], 0) if by_itself else (link.source, writes[link.source])
            if layer not in readers:
                order.append(layer)
            seen = source + (writers.get(link.target, []) if link.joint else [])
            fixed.setdefault(layer, []).extend(name for name in seen if name not in cut)
            chosen[layer] = by_itself
            readers.setdefault(layer, []).append(link.unit)
            cut.update(seen)
        if link.unit in prunable and root[link.target] not in alone:
            writers[link.target] = [*writers.get(link.target, []), link.unit]
        writes[link.target] = writes.get(link.target, 0) + 1
    for name in prunable.keys() - cut:
        raise ValueError(f"'{name}' is read by no layer whose weights could be solved for")
    return [Layer(tuple(chosen[layer]), tuple(fixed[layer]), tuple(readers[layer])) for layer in order]


def _alone(network: Network, root: dict[str, str], name: str) -> tuple[str, ...]:
    """Return the unit that alone writes the channels of the nodes with this root, and those tied to it; none otherwise."""
    writing = [link for link in network.links if root[link.target] == name]
    reading = [link for link in network.links if root[link.source] == name and not (link.unit is None or link.ties)]
    plain = all(link.unit in network.units and link.joint is None for link in writing)
    one = sum(link.ties is None for link in writing) == 1
    tied = all(link.ties or not network.get_submodule(link.unit).in_groups for link in (*writing, *reading) if link.unit)
    return tuple(link.unit for link in writing) if plain and one and tied and reading else ()
