"""This file holds penalties on weights and proximal steps, of which `--reg` chooses one.

It is the second file, beside modeling.py, in which a user changes the loss. A penalty maps a network to `weight` times a
measure, a scalar that is added to the loss; it is computed in float32, for all layers of one shape at once. A proximal step
is a function that returns None: it is called after the optimiser's step, and moves weights by itself. `--odecay` overrides
the default `weight`, which is the paper's for reg_cov and its variant, the SRIP authors' for reg_ortho, network slimming's
for VGG for bn_l1, and our own for l1.

Filters that a mask has cut are multiplied by 0 and not taken out, so that shapes and memory stay the same at every step.
"""

import functools
from collections import defaultdict

import torch
from torch import Tensor

from models import Network
from models.numerics import correlations, directions, precise


def _outside_autocast(penalty):
    """Return the penalty computed in full precision, also where the caller has autocast on."""

    @functools.wraps(penalty)
    def precise(network: Network, **options) -> Tensor:
        with torch.autocast(next(network.parameters()).device.type, enabled=False):
            return penalty(network, **options)

    return precise


def _by_shape(network: Network, linear: bool = False) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Return the convolutions' weights in force, those of one shape together, and which filters are live; or also `linear` ones.

    Each pair holds a list of weights of one shape, and for each of them (filters,) of 1 and 0.
    """
    by_shape = defaultdict(lambda: ([], []))
    units = network.units
    if linear:
        units = units | {name: unit for name, unit in network.all_units.items() if unit.is_linear}
    for unit in units.values():
        if unit.weight.numel() == 0:
            continue
        weight = precise(unit.weight_in_force)
        weights, lives = by_shape[weight.shape]
        weights.append(weight)
        lives.append(unit.alive(weight.dtype))
    return list(by_shape.values())


def _stacks(network: Network, linear: bool = False) -> list[tuple[Tensor, Tensor]]:
    """Return filters as rows, (layers, filters, weights), and which are live, (layers, filters): a pair for each shape."""
    return [(torch.stack([w.flatten(1) for w in weights]), torch.stack(live)) for weights, live in _by_shape(network, linear)]


def _sum(network: Network, terms: list[Tensor]) -> Tensor:
    """Return the sum of the terms; 0 where there is none, because removal has left no layer a weight."""
    return torch.stack(terms).sum() if terms else next(network.parameters()).new_zeros(())


def _scales(network: Network) -> list[tuple[Tensor, Tensor]]:
    """Return batch norm's scales behind each convolution, (filters,), each with 1 or 0 for every filter."""
    norms = [(unit.norm.weight, unit) for unit in network.units.values() if unit.norm is not None]
    return [(scale, unit.alive(precise(scale).dtype)) for scale, unit in norms]


# from so many multiplications in a layer's Gram matrix on, waiting for the mask's values costs less than it saves
LARGE = 10**8


def _with_gradient(rows: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum over layers of the mean |C_ij|, i != j, and its gradient for the rows."""
    rows, inverse = directions(rows, live)
    gram = rows @ rows.mT
    gram.diagonal(dim1=-2, dim2=-1).zero_()
    filters = live.sum(-1)
    pairs = (filters * (filters - 1)).clamp_min(1).view(-1, 1, 1)
    signs = gram.sign().mul_(2 / pairs)
    size = (gram * signs).sum(-1, keepdim=True)
    return size.sum() / 2, torch.baddbmm(size * rows, signs, rows, beta=-1).mul_(inverse)


class _MeanCorrelation(torch.autograd.Function):
    """The sum over layers of one shape of the mean |C_ij|, i != j; its gradient is computed in the same pass.

    With U the directions, d_i their inverse lengths and S = 2 sign(C) / (n (n - 1)), the gradient of row i is
    d_i * ((S U)_i - sum_j S_ij C_ij U_i). This takes one product instead of autograd's two, and fewer passes over the rows.
    """

    @staticmethod
    def forward(ctx, live: Tensor, *weights: Tensor) -> Tensor:
        # a correlation does not depend on the order of a filter's weights, so they stay in the order of memory
        last = not weights[0].is_contiguous()
        laid = [(weight.permute(0, 2, 3, 1) if last else weight) for weight in weights]
        rows = torch.stack([weight.flatten(1) for weight in laid])
        ctx.shape, ctx.last = laid[0].shape, last
        if rows.device.type == "cpu" and rows[0].numel() * len(rows[0]) >= LARGE and not live.all():
            # the work grows with the square of the number of live filters, so the others are taken out first
            ctx.gradient, total = torch.zeros_like(rows), rows.new_zeros(())
            for layer, alive, gradient in zip(rows, live.bool(), ctx.gradient, strict=True):
                rows_left = layer[alive].unsqueeze(0)
                size, gradient[alive] = _with_gradient(rows_left, rows_left.new_ones(rows_left.shape[:2]))
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

    It is the mean over layers of the mean |C_ij|, i != j, where C is the Pearson correlation between the layer's flattened
    live filters: 0 where they are uncorrelated, 1 where all are copies of one filter. A layer with one live filter gives 0.
    """
    if not torch.compiler.is_compiling():
        terms = [_MeanCorrelation.apply(torch.stack(live), *weights) for weights, live in _by_shape(network)]
        return weight * (_sum(network, terms) / len(network.units))
    terms = []
    for rows, live in _stacks(network):  # a compiler fuses this by itself
        filters = live.sum(-1)
        terms.append((correlations(rows, live).abs().sum((-1, -2)) / (filters * (filters - 1)).clamp_min(1)).sum())
    return weight * (_sum(network, terms) / len(network.units))


@_outside_autocast
def reg_cov_ijcai2018(network: Network, *, weight: float = 0.7, tau: float = 1e-4) -> Tensor:
    """Decorrelation as in Zhu, Zhou and Li, IJCAI 2018: sum over layers of ||C_S - diag C_S||_F / |S|.

    C is the Pearson correlation between the layer's flattened filters; S holds the live filters with mean |w| > tau.
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
def reg_ortho(network: Network, *, weight: float = 1e-2, iterations: int = 1, linear: bool = False) -> Tensor:
    """Spectral restricted isometry (SRIP): Bansal, Chen and Wang, 2018 (arXiv 1810.09102).

    It is the sum over layers of sigma(W W^T - I)^2, where sigma is the spectral norm and W has the live filters as rows; for
    a W with more rows than columns, W^T W takes the place of W W^T. sigma is |A v| with A = W W^T - I and v the normalised
    A^iterations v0; as in the authors' code there is one such iteration, and the gradient goes through v. Their v0 is random,
    here it is fixed, so that no random state is touched. `linear` takes in linear layers, as their code does.
    """
    terms = []
    for rows, live in _stacks(network, linear):
        rows = rows * live.unsqueeze(-1)
        wide = rows.shape[1] <= rows.shape[2]
        gram = rows @ rows.mT if wide else rows.mT @ rows
        identity = live if wide else torch.ones_like(rows[:, 0])
        difference = gram - torch.diag_embed(identity)
        vector = torch.arange(1, gram.shape[-1] + 1, dtype=gram.dtype, device=gram.device).cos()
        vector = (vector / vector.norm()).expand(len(gram), -1).unsqueeze(-1)
        for _ in range(iterations):
            vector = difference @ vector
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

    gamma <- sign(gamma) max(|gamma| - step x weight, 0) for all live filters. This is the proximal step of the penalty
    bn_l1, which by itself makes scales small but never 0. `step` is the learning rate of the optimiser's last step. The
    paper weighs each layer by what its filters cost; here all weigh the same.
    """
    for scale, live in _scales(network):
        scale.copy_(scale.sign() * (scale.abs() - step * weight * live).clamp_min(0))
