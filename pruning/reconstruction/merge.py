"""Merging removes the channels that are most like others, and lets their readers read those instead; no image is needed."""

from typing import Annotated

import torch
from torch import Tensor

from pruning.repair import Problem


def merge(problem: Annotated[Problem, "hidden layers"]) -> tuple[Tensor, list[Tensor]]:
    """Each channel that goes is merged into the one most like it, without images (Srinivas and Babu, 2015, arXiv 1507.06149).

    Removing j into i costs s_ij = mean_k(a_kj^2) * ||W_i - W_j||^2, where W_i are the weights and the bias that write channel
    i, batch norm folded in, and a_kj all weights k that read channel j. The pair of least cost goes first: a_i += a_j, j is
    taken out, and what its removal would cost is computed anew from the new a_i, until as many channels are left as the
    criterion keeps. Ties go by index. Where W_i = W_j no output changes.
    """
    incoming, readers = problem.incoming(), problem.outgoing()
    # the weights that read a channel, of all readers: (channels, weights)
    outgoing = torch.cat([weight.transpose(0, 1).flatten(1) for weight in readers], 1)
    keep, outgoing = merged(incoming, outgoing, int(problem.keep.sum()))
    parts = outgoing.split([weight[:, 0].numel() for weight in readers], 1)
    shapes = [(len(keep), len(weight), weight.shape[2]) for weight in readers]
    return keep, [part.reshape(shape).transpose(0, 1) for part, shape in zip(parts, shapes, strict=True)]


def costs(incoming: Tensor, outgoing: Tensor) -> Tensor:
    """Return what it costs to remove channel j into channel i, (i, j); `incoming` and `outgoing` are (channels, weights)."""
    return _distances(incoming) * outgoing.square().mean(1)


def merged(incoming: Tensor, outgoing: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Merge channels until so many are left: which these are, (channels,) bool, and what reads them then, 0 for the others."""
    distances, cost, outgoing = _distances(incoming), costs(incoming, outgoing), outgoing.clone()
    keep, apart = torch.ones(len(cost), dtype=torch.bool), ~torch.eye(len(cost), dtype=torch.bool)
    for _ in range(len(cost) - count):
        pairs = apart & keep & keep[:, None]
        into, gone = divmod(int(cost.masked_fill(~pairs, torch.inf).argmin()), len(cost))
        outgoing[into] += outgoing[gone]
        outgoing[gone], keep[gone] = 0, False
        cost[:, into] = distances[:, into] * outgoing[into].square().mean()
    return keep, outgoing


def _distances(incoming: Tensor) -> Tensor:
    """Return ||W_i - W_j||^2, (i, j), from differences: by products, equal channels would not be exactly 0 apart."""
    return torch.cdist(incoming, incoming, compute_mode="donot_use_mm_for_euclid_dist").square()
