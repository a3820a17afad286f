"""This file merges channels that are written alike: one leaves, and what read it reads the other one more."""

import torch
from torch import Tensor


def costs(incoming: Tensor, outgoing: Tensor) -> Tensor:
    """Return what it costs to remove channel j into channel i, (i, j): mean_k(a_kj^2) * ||W_i - W_j||^2.

    `incoming` holds W_i, the weights and the bias that write channel i, and `outgoing` all weights a_ki that read it: both
    are (channels, weights).
    """
    return _distances(incoming) * outgoing.square().mean(1)


def merged(incoming: Tensor, outgoing: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Merge channels until so many are left: return which, (channels,) bool, and what reads them then, 0 for the others.

    The pair of least cost goes first, ties by index: a_i += a_j, and j leaves. What it costs to remove i then depends on
    the new a_i, and is computed anew.
    """
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
