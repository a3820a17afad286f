"""Penalties on weights stand here, and proximal steps: what `--reg` chooses from, the second file in which a loss is changed.

A penalty maps a network to `weight` times a measure, a scalar that is added to the loss. It is computed in float32 and
batched by shape. A proximal step is a function that returns None: called after the optimiser's step, it moves weights by
itself. `--odecay` gives another `weight` than the default: the paper's for reg_cov and its variant, SRIP's authors' for
reg_ortho, network slimming's for VGG for bn_l1; l1's is ours.

Filters that a mask has cut are left out, by multiplication, so that shapes and memory stay the same at every step.
"""

import functools
from collections import defaultdict

import torch
from torch import Tensor

from models import Network
from models.numerics import correlations, directions, precise


def _outside_autocast(penalty):
    """Full precision, also where the caller has autocast on."""

    @functools.wraps(penalty)
    def precise(network: Network, **options) -> Tensor:
        with torch.autocast(next(network.parameters()).device.type, enabled=False):
            return penalty(network, **options)

    return precise


def _by_shape(network: Network) -> list[tuple[list[Tensor], list[Tensor]]]:
    """The convolutions' weights in force, those of one shape together, with 1 or 0 for each filter, (filters,)."""
    found = defaultdict(lambda: ([], []))
    for unit in network.units.values():
        if unit.weight.numel() == 0:
            continue
        weight = precise(unit.weight_in_force)
        weights, lives = found[weight.shape]
        weights.append(weight)
        lives.append(unit.alive(weight.dtype))
    return list(found.values())


def _stacks(network: Network) -> list[tuple[Tensor, Tensor]]:
    """The convolutions' filters as rows, (layers, filters, weights), with 1 or 0 for each, (layers, filters)."""
    return [(torch.stack([w.flatten(1) for w in weights]), torch.stack(live)) for weights, live in _by_shape(network)]


def _sum(network: Network, terms: list[Tensor]) -> Tensor:
    """0 where removal has left no layer a weight."""
    return torch.stack(terms).sum() if terms else next(network.parameters()).new_zeros(())


def _scales(network: Network) -> list[tuple[Tensor, Tensor]]:
    """Batch norm's scales behind each convolution, (filters,), with 1 or 0 for each filter."""
    norms = [(unit.norm.weight, unit) for unit in network.units.values() if unit.norm is not None]
    return [(scale, unit.alive(precise(scale).dtype)) for scale, unit in norms]


# multiplications of a layer's Gram matrix from which a host's look at the mask costs less than it saves
LARGE = 10**8


def _with_gradient(rows: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over layers of the mean |C_ij|, i != j, and its gradient for the rows."""
    rows, inverse = directions(rows, live)
    gram = rows @ rows.mT
    gram.diagonal(dim1=-2, dim2=-1).zero_()
    count = live.sum(-1)
    pairs = (count * (count - 1)).clamp_min(1).view(-1, 1, 1)
    signs = gram.sign().mul_(2 / pairs)
    size = (gram * signs).sum(-1, keepdim=True)
    return size.sum() / 2, torch.baddbmm(size * rows, signs, rows, beta=-1).mul_(inverse)


class _MeanCorrelation(torch.autograd.Function):
    """Sum over layers of one shape of the mean |C_ij|, i != j, with its gradient made beside it.

    U the directions, d_i their inverse lengths, S = 2 sign(C) / (n (n - 1)): the gradient of row i is
    d_i * ((S U)_i - sum_j S_ij C_ij U_i). One product instead of autograd's two, and none of its passes over the rows.
    """

    @staticmethod
    def forward(ctx, live: Tensor, *weights: Tensor) -> Tensor:
        # in the order in which they lie in memory: a correlation does not depend on it
        last = not weights[0].is_contiguous()
        laid = [(weight.permute(0, 2, 3, 1) if last else weight) for weight in weights]
        rows = torch.stack([weight.flatten(1) for weight in laid])
        ctx.shape, ctx.last = laid[0].shape, last
        if rows.device.type == "cpu" and rows[0].numel() * len(rows[0]) >= LARGE and not live.all():
            # worth a look at how many are left, whose square is the work
            ctx.gradient, total = torch.zeros_like(rows), rows.new_zeros(())
            for layer, alive, gradient in zip(rows, live.bool(), ctx.gradient, strict=True):
                left = layer[alive].unsqueeze(0)
                size, gradient[alive] = _with_gradient(left, left.new_ones(left.shape[:2]))
                total += size
            return total
        total, ctx.gradient = _with_gradient(rows, live)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor):
        layers = (ctx.gradient * gradient).view(-1, *ctx.shape)
        return None, *(layer.permute(0, 3, 1, 2) if ctx.last else layer for layer in layers)


@_outside_autocast
def reg_cov(network: Network, *, weight: float = 0.7) -> Tensor:
    """Correlation of a layer's filters, the term of the KSC 2020 paper.

    0 where they are uncorrelated, 1 where all are copies of one. Mean over layers of the mean |C_ij|, i != j, C the Pearson
    correlation between the layer's flattened live filters. A layer with one live filter gives 0.
    """
    if not torch.compiler.is_compiling():
        terms = [_MeanCorrelation.apply(torch.stack(live), *weights) for weights, live in _by_shape(network)]
        return weight * (_sum(network, terms) / len(network.units))
    terms = []
    for rows, live in _stacks(network):  # a compiler fuses this by itself
        count = live.sum(-1)
        terms.append((correlations(rows, live).abs().sum((-1, -2)) / (count * (count - 1)).clamp_min(1)).sum())
    return weight * (_sum(network, terms) / len(network.units))


@_outside_autocast
def reg_cov_ijcai2018(network: Network, *, weight: float = 0.7, tau: float = 1e-4) -> Tensor:
    """Decorrelation as in Zhu, Zhou and Li, IJCAI 2018: sum over layers of ||C_S - diag C_S||_F / |S|.

    C is the Pearson correlation between the layer's flattened filters, S the live ones with mean |w| > tau.
    """
    terms = []
    for rows, live in _stacks(network):
        live = live * (rows.detach().abs().mean(-1) > tau)
        squares = correlations(rows, live).square().sum((-1, -2))
        # the square root has no derivative at 0
        norm = torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)
        terms.append((norm / live.sum(-1).clamp_min(1)).sum())
    return weight * _sum(network, terms)


@_outside_autocast
def reg_ortho(network: Network, *, weight: float = 1e-2, iterations: int = 2) -> Tensor:
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
    return weight * _sum(network, terms)


@_outside_autocast
def l1(network: Network, *, weight: float = 1e-5) -> Tensor:
    """Sum of the absolute weights of all live filters: the sparsity that --prune_imp zero_fraction counts on.

    Singh et al., 2019 (arXiv 1811.08342).
    """
    return weight * _sum(network, [(rows.abs().sum(-1) * live).sum() for rows, live in _stacks(network)])


@_outside_autocast
def bn_l1(network: Network, *, weight: float = 1e-4) -> Tensor:
    """Sum of batch norm's absolute scales behind all live filters: Network Slimming (Liu et al., 2017, arXiv 1708.06519).

    The derivative of |gamma| at 0 is 0. What --prune_imp bn_scale counts on.
    """
    scales = [(precise(scale), live) for scale, live in _scales(network)]
    return weight * _sum(network, [(scale.abs() * live).sum() for scale, live in scales])


@torch.no_grad()
def bn_l1_proximal(network: Network, step: float, *, weight: float = 1e-4) -> None:
    """Soft-thresholding of batch norm's scales, the ISTA step of Ye et al., 2018 (arXiv 1802.00124): scales become 0 exactly.

    gamma <- sign(gamma) max(|gamma| - step x weight, 0) for all live filters: the proximal step of the penalty that bn_l1
    adds to the loss, which makes scales small but never 0. `step` is the learning rate of the optimiser's step before.
    The paper weighs each layer by what its filters cost; here all weigh the same.
    """
    for scale, live in _scales(network):
        scale.copy_(scale.sign() * (scale.abs() - step * weight * live).clamp_min(0))
