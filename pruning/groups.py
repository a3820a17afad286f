"""This file says what is decided together: each filter by itself, or all the filters that write one channel of a stream."""

import math
from collections.abc import Collection

import torch
from torch import Tensor

from models import Network
from models.numerics import precise
from pruning.channels import alone, cannot_be_cut, in_groups
from settings.registry import CRITERIA, parse_call


class Decisions:
    """Decisions turn the scores of units into scores of what is cut together, and what is kept back into masks.

    With the policy "free" every filter is a decision of its own, and a branch writes the filters that stay into the stream
    by index. With "grouped" the filters that write channel c of a stream are one decision, together with the channels that
    a shortcut without parameters copies, so that a channel that is cut leaves the stream itself. With both, a filter that
    is tied to a channel is decided with all filters that write this channel. A group of a convolution in groups is one
    decision, together with the filters that write what it reads. With "pieces", for parts of filters, each piece is a decision
    of its own. Unless they count `tied_too`, filters that are tied to a channel have no say in what is decided about them,
    as where filters are compared that must read the same channels. ValueError for a group that cannot leave.
    """

    def __init__(self, network: Network, names: list[str], policy: str, tied_too: bool = True):
        root = same_channels(network)
        tied = {root[link.target] for link in network.links if link.ties}
        members: dict[tuple, list[str]] = {}
        groups = {} if policy == "pieces" else _groups(network)
        for link in network.links:
            if link.unit in names:
                together = policy == "grouped" or (policy == "free" and root[link.target] in tied)
                key = ("stream", root[link.target]) if together else ("unit", link.unit)
                key = groups.get(link.unit, (key, 0))[0]
                members.setdefault(key, []).append(link.unit)
        self.joins = any(key[0] == "stream" and len(units) > 1 for key, units in members.items())  # units that write one channel
        # under "free" a stream has the name of its first unit, so that files of counts by layer can name it
        self.network = network
        self.layers = {key[1] if policy == "grouped" else units[0]: units for key, units in members.items()}
        says = {link.unit for link in network.links if tied_too or not link.ties}
        self.asked = {layer: [name for name in units if name in says] or units for layer, units in self.layers.items()}
        self.tied_too = tied_too
        # of each unit, how many of its filters are one decision
        self.sizes = {name: groups[name][1] if name in groups else 1 for name in names}

    def __len__(self) -> int:
        """How many decisions about filters there are; each layer has as many as its widest writer."""
        units = self.network.units
        return sum(max(units[name].filters // self.sizes[name] for name in members) for members in self.layers.values())

    def multiples(self, filters: int) -> dict[str, int]:
        """Return how many decisions of each layer, at the least, are a multiple of so many filters in each of its units."""
        sizes = {layer: [self.sizes[name] for name in members] for layer, members in self.layers.items()}
        return {layer: math.lcm(*(filters // math.gcd(filters, size) for size in each)) for layer, each in sizes.items()}

    def merge(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a score for every decision: the mean over its filters, each layer's scores first divided by their mean."""
        scores = {name: _by_size(score, self.sizes[name]) for name, score in scores.items()}
        return {
            layer: scores[members[0]] if len(members) == 1 else _together([scores[name] for name in members])
            for layer, members in self.asked.items()
        }

    def gather(self, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return whether each decision keeps its filters, from the units' masks; all filters of a decision have the same."""
        masks = {name: mask[:: self.sizes[name]] for name, mask in masks.items()}
        return {layer: max((masks[name] for name in members), key=len) for layer, members in self.layers.items()}

    def spread(self, keep: dict[str, Tensor], scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """Turn what is kept of every decision into masks of the units, in the shapes of their `scores`."""
        return {
            name: keep[layer].repeat_interleave(self.sizes[name], 0)[: len(scores[name])]
            for layer, members in self.layers.items()
            for name in members
        }


def check_comparable(network: Network, criterion: str, whole: Collection[str] = ()) -> None:
    """Raise ValueError if a criterion, by its name with options, compares what in this network cannot be compared.

    These are filters of a convolution in groups, which read other channels, zeros where there is no ReLU, or scales of batch
    norm where there is none. Units in `whole` are never cut.
    """
    entry, of = CRITERIA.entry(criterion), parse_call(criterion)[1].get("of")
    if of in CRITERIA.entries:  # it begins with the scores of another one
        check_comparable(network, of, whole)
    if "batch norm" in entry.traits:
        for name, unit in network.prunable_convolutions.items():
            if unit.norm is None and not unit.is_scale and name not in whole:
                raise ValueError(f"{entry.name} compares scales of batch norm, and '{name}' has none")
    if "zeros of a ReLU" in entry.traits and (linear := _linear(network)):
        raise ValueError(f"{entry.name} counts the zeros behind a ReLU, and '{linear[0]}' has none")
    if "unlike filters" in entry.traits and (grouped := in_groups(network)):
        where = f"'{grouped[0].unit}' is a convolution in {network.get_submodule(grouped[0].unit).groups} groups"
        raise ValueError(f"{entry.name} compares filters that read the same channels, and {where}")


def _linear(network: Network) -> list[str]:
    """Return the convolutions whose filters may go, and behind which, or behind the joints of whose stream, there is no ReLU.

    A learned scale of each channel is none of them: its zeros are those of what it reads.
    """
    joints = {link.target: network.get_submodule(link.joint) for link in network.links if link.joint}
    rectified = {node for node, joint in joints.items() if joint.activation}
    targets = {link.unit: link.target for link in network.links}
    units = {name: unit for name, unit in network.prunable_convolutions.items() if not (unit.activation or unit.is_scale)}
    return [name for name in units if targets[name] not in rectified]


def same_channels(network: Network) -> dict[str, str]:
    """Return {node: a name that it shares with all nodes that hold the same channels}, because they are copied or tied."""
    root: dict[str, str] = {}
    for link in network.links:
        root.setdefault(link.source, link.source)
        root.setdefault(link.target, link.target)
        if link.unit is None or link.ties:
            old, new = root[link.target], root[link.source]
            root = {node: new if top == old else top for node, top in root.items()}
    return root


def _groups(network: Network) -> dict[str, tuple[tuple[str, str], int]]:
    """Return {unit: (what it shares with all that is decided with it, how many of its filters a group takes along)}.

    These are the convolutions in groups and what writes what they read. ValueError for one of which no group can leave, since
    its source has other writers or readers, or since this is in groups or tied itself.
    """
    by_unit, found = {link.unit: link for link in network.links}, {}
    for link in in_groups(network):
        unit = network.get_submodule(link.unit)
        writer = next(other.unit for other in network.links if other.target == link.source) if alone(network, link) else None
        if writer is None or writer in found or by_unit[writer].ties or network.get_submodule(writer).in_groups:
            raise ValueError(f"{cannot_be_cut(link.unit, unit)}, with a layer before it that nothing else reads")
        for name in (writer, link.unit):
            found[name] = ("unit", writer), max(network.get_submodule(name).filters // unit.groups, 1)
    return found


def _by_size(scores: Tensor, size: int) -> Tensor:
    """Return the mean over every `size` scores; of bools whether one of them is True."""
    if size == 1:
        return scores
    parts = scores.unflatten(0, (len(scores) // size, size))
    return parts.any(1) if scores.dtype == torch.bool else precise(parts).mean(1)


def _together(scores: list[Tensor]) -> Tensor:
    """Return one score for each channel of a stream, from those of all its writers, of which some may be narrower."""
    scores = [precise(score) for score in scores]
    means = [mean_of(score) for score in scores]
    total = torch.zeros(max(map(len, scores)), device=scores[0].device, dtype=scores[0].dtype)
    writers = torch.zeros_like(total)
    for score, mean in zip(scores, means, strict=True):
        total[: len(score)] += score / mean
        writers[: len(score)] += 1
    return total / writers * torch.stack(means).mean()


def mean_of(scores: Tensor) -> Tensor:
    """Return the mean of |score|, always above 0; -inf, which marks what must go first, is left out."""
    kept = torch.isfinite(scores)
    return (torch.where(kept, scores.abs(), 0).sum() / kept.sum().clamp_min(1)).clamp_min(torch.finfo(scores.dtype).tiny)
