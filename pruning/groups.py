"""This file says what is decided as one: each filter by itself, or all the filters that write one channel of a stream."""

import torch
from torch import Tensor

from models import Network
from models.numerics import precise


class Decisions:
    """Scores and masks of units, seen as decisions.

    Policy "free": every filter is one, and a branch writes what is left of it into the stream by index. Policy
    "grouped": the filters that write channel c of a stream are one, and so are channels that a shortcut without
    parameters copies, so that a channel that is cut leaves the stream itself. Under both, a filter that is tied to a
    channel is one with all that write this channel. Policy "pieces" is for parts of filters, each one by itself.
    """

    def __init__(self, network: Network, names: list[str], policy: str):
        root: dict[str, str] = {}  # of every node, the name of those whose channels are the same ones
        for link in network.links:
            root.setdefault(link.source, link.source)
            root.setdefault(link.target, link.target)
            if link.unit is None or link.ties:
                old, new = root[link.target], root[link.source]
                root = {node: new if top == old else top for node, top in root.items()}
        tied = {root[link.target] for link in network.links if link.ties}
        members: dict[tuple, list[str]] = {}
        for link in network.links:
            if link.unit in names:
                together = policy == "grouped" or (policy == "free" and root[link.target] in tied)
                key = ("stream", root[link.target]) if together else ("unit", link.unit)
                members.setdefault(key, []).append(link.unit)
        # under "free" a stream has the name of its first unit, so that files of counts by layer can name it
        self.layers = {key[1] if policy == "grouped" else units[0]: units for key, units in members.items()}

    def merge(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """A score for every decision: the mean over its filters, each layer's scores made comparable by their mean."""
        return {
            layer: scores[members[0]] if len(members) == 1 else _together([scores[name] for name in members])
            for layer, members in self.layers.items()
        }

    def spread(self, keep: dict[str, Tensor], scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """The decisions, given back to the units: in the shapes of their `scores`."""
        return {name: keep[layer][: len(scores[name])] for layer, members in self.layers.items() for name in members}


def _together(scores: list[Tensor]) -> Tensor:
    scores = [precise(score) for score in scores]
    means = [mean_of(score) for score in scores]
    total = torch.zeros(max(map(len, scores)), device=scores[0].device, dtype=scores[0].dtype)
    writers = torch.zeros_like(total)
    for score, mean in zip(scores, means, strict=True):
        total[: len(score)] += score / mean
        writers[: len(score)] += 1
    return total / writers * torch.stack(means).mean()


def mean_of(scores: Tensor) -> Tensor:
    """The mean size of the scores that are no -inf, which marks what must go first; above 0."""
    kept = torch.isfinite(scores)
    return (torch.where(kept, scores.abs(), 0).sum() / kept.sum().clamp_min(1)).clamp_min(torch.finfo(scores.dtype).tiny)
