"""Penalties on the weights: functions of a network that give a scalar, computed in float32 and batched by shape.

Filters that a mask has cut are left out, by multiplication, so that shapes and memory stay the same at every step.
"""

import functools
from collections import defaultdict

import torch
from torch import Tensor

from models import Network

# alpha where --odecay is not typed: the paper's, and that of SRIP's authors
ALPHA = {"reg_cov": 0.7, "reg_cov_ijcai2018": 0.7, "reg_ortho": 1e-2}


def _outside_autocast(penalty):
    """Full precision, also where the caller has autocast on."""

    @functools.wraps(penalty)
    def precise(network: Network, **options) -> Tensor:
        with torch.autocast(next(network.parameters()).device.type, enabled=False):
            return penalty(network, **options)

    return precise


def _stacks(network: Network) -> list[tuple[Tensor, Tensor]]:
    """The convolutions' filters as rows, (layers, filters, weights), with 1 or 0 for each, (layers, filters)."""
    by_shape = defaultdict(list)
    for unit in network.units.values():
        if unit.weight.numel() == 0:
            continue
        rows = unit.weight_in_force.flatten(1)
        rows = rows if rows.dtype == torch.float64 else rows.float()
        live = torch.ones_like(rows[:, 0]) if unit.live is None else unit.live.to(rows.dtype)
        by_shape[rows.shape].append((rows, live.detach()))
    return [tuple(torch.stack(part) for part in zip(*layers, strict=True)) for layers in by_shape.values()]


def _sum(network: Network, terms: list[Tensor]) -> Tensor:
    """0 where removal has left no layer a weight."""
    return torch.stack(terms).sum() if terms else next(network.parameters()).new_zeros(())


def _correlations(rows: Tensor, live: Tensor) -> Tensor:
    """Pearson correlation between the rows, diagonal 0: (layers, filters, filters). A constant row has 0 with all."""
    centred = rows - rows.mean(-1, keepdim=True)
    squares = centred.square().sum(-1, keepdim=True)
    # what rounding leaves of a constant filter is no direction
    varies = squares > 1e-12 * rows.detach().square().sum(-1, keepdim=True)
    inverse = torch.where(varies, squares, 1.0).rsqrt() * varies * live.unsqueeze(-1)
    unit_rows = centred * inverse
    gram = unit_rows @ unit_rows.mT
    return gram * (1 - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device))


@_outside_autocast
def reg_cov(network: Network) -> Tensor:
    """Correlation of a layer's filters, the term of the KSC 2020 paper.

    0 where they are uncorrelated, 1 where all are copies of one. Mean over layers of the mean |C_ij|, i != j, C the Pearson
    correlation between the layer's flattened live filters. A layer with one live filter gives 0.
    """
    terms = []
    for rows, live in _stacks(network):
        count = live.sum(-1)
        terms.append((_correlations(rows, live).abs().sum((-1, -2)) / (count * (count - 1)).clamp_min(1)).sum())
    return _sum(network, terms) / len(network.units)


@_outside_autocast
def reg_cov_ijcai2018(network: Network, *, tau: float = 1e-4) -> Tensor:
    """Decorrelation as in Zhu, Zhou and Li, IJCAI 2018: sum over layers of ||C_S - diag C_S||_F / |S|.

    C is the Pearson correlation between the layer's flattened filters, S the live ones with mean |w| > tau.
    """
    terms = []
    for rows, live in _stacks(network):
        live = live * (rows.detach().abs().mean(-1) > tau)
        squares = _correlations(rows, live).square().sum((-1, -2))
        # the square root has no derivative at 0
        norm = torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)
        terms.append((norm / live.sum(-1).clamp_min(1)).sum())
    return _sum(network, terms)


@_outside_autocast
def reg_ortho(network: Network, *, iterations: int = 2) -> Tensor:
    """Spectral restricted isometry (SRIP): Bansal, Chen and Wang, 2018 (arXiv 1810.09102).

    Sum over layers of sigma(W W^T - I)^2, sigma the spectral norm, W the live filters as rows; W^T W where that is the
    smaller by shape. Power iteration from a fixed start, so that no random state is touched.
    """
    terms = []
    for rows, live in _stacks(network):
        rows = rows * live.unsqueeze(-1)
        wide = rows.shape[1] <= rows.shape[2]
        gram = rows @ rows.mT if wide else rows.mT @ rows
        identity = live if wide else torch.ones_like(rows[:, 0])
        difference = gram - torch.diag_embed(identity)
        vector = torch.arange(1, gram.shape[-1] + 1, dtype=gram.dtype, device=gram.device).cos()
        vector = (vector / vector.norm()).expand(len(gram), -1).unsqueeze(-1)
        for _ in range(iterations):
            vector = (difference @ vector).detach()
            vector = vector / vector.norm(dim=1, keepdim=True).clamp_min(1e-30)
        terms.append((difference @ vector).square().sum())
    return _sum(network, terms)
