"""This file says what is decided together: each filter by itself, or all the filters that write one channel of a stream."""

import torch
from torch import Tensor

from models import Network
from models.numerics import precise


class Decisions:
    """Decisions turn the scores of units into scores of what is cut together, and what is kept back into masks.

    With the policy "free" every filter is a decision of its own, and a branch writes the filters that stay into the stream
    by index. With "grouped" the filters that write channel c of a stream are one decision, together with the channels that
    a shortcut without parameters copies, so that a channel that is cut leaves the stream itself. With both, a filter that
    is tied to a channel is decided with all filters that write this channel. With "pieces", for parts of filters, each
    piece is a decision of its own.
    """

    def __init__(self, network: Network, names: list[str], policy: str):
        root = same_channels(network)
        tied = {root[link.target] for link in network.links if link.ties}
        members: dict[tuple, list[str]] = {}
        for link in network.links:
            if link.unit in names:
                together = policy == "grouped" or (policy == "free" and root[link.target] in tied)
                key = ("stream", root[link.target]) if together else ("unit", link.unit)
                members.setdefault(key, []).append(link.unit)
        # under "free" a stream has the name of its first unit, so that files of counts by layer can name it
        self.network = network
        self.layers = {key[1] if policy == "grouped" else units[0]: units for key, units in members.items()}

    def __len__(self) -> int:
        """How many decisions about filters there are; each layer has as many as its widest writer."""
        return sum(max(self.network.units[name].filters for name in members) for members in self.layers.values())

    def merge(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a score for every decision: the mean over its filters, each layer's scores first divided by their mean."""
        return {
            layer: scores[members[0]] if len(members) == 1 else _together([scores[name] for name in members])
            for layer, members in self.layers.items()
        }

    def gather(self, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return whether each decision keeps its filters, from the units' masks; all filters of a decision have the same."""
        return {layer: max((masks[name] for name in members), key=len) for layer, members in self.layers.items()}

    def spread(self, keep: dict[str, Tensor], scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """Turn what is kept of every decision into masks of the units, in the shapes of their `scores`."""
        return {name: keep[layer][: len(scores[name])] for layer, members in self.layers.items() for name in members}


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
