"""This file holds penalties on weights and proximal steps, of which `--reg` chooses one.

It is the second file, beside modeling.py, in which a user changes the loss. A penalty maps a network to `weight` times a
measure, a scalar that is added to the loss; it is computed in float32, for all layers of one shape at once. A proximal step
is a function that returns None: it is called after the optimiser's step, and moves weights by itself. `--odecay` overrides
the default `weight`, which is the paper's for reg_cov and its variant, the SRIP authors' for reg_ortho, network slimming's
for VGG for bn_l1, the authors' for group_lasso and sss, and our own for l1.

Filters that a mask has cut are multiplied by 0 and not taken out, so that shapes and memory stay the same at every step.
"""

from collections import defaultdict
from typing import Annotated, Literal

import torch
from torch import Tensor

from models import Network, Unit
from models.numerics import MeanCorrelation, correlations, outside_autocast, precise


def _by_shape(
    network: Network, linear: bool = False, compared: bool = False, only: set | None = None
) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Return the convolutions' weights in force, those of one shape together, and which filters are live; or also `linear` ones.

    Each pair holds a list of weights of one shape, and for each of them (filters,) of 1 and 0. Where filters are `compared`,
    each group of a convolution in groups has a weight of its own, and those of one filter, as in a depthwise one, have none.
    With `only` these units are meant, outputs too.
    """
    by_shape = defaultdict(lambda: ([], []))
    units = network.prunable_convolutions
    if linear:
        units = units | {name: unit for name, unit in network.all_units.items() if unit.is_linear}
    if only is not None:
        units = {name: unit for name, unit in network.all_units.items() if name in only}
    # a learned scale of each channel is no filter: what is small in it is made up for by its readers
    units = {name: unit for name, unit in units.items() if not unit.is_scale}
    for unit in units.values():
        if unit.weight.numel() == 0 or (compared and not _sets(unit)):
            continue
        weight, live = precise(unit.weight_in_force), unit.alive(precise(unit.weight).dtype)
        parts = _sets(unit) if compared else 1
        for part, its_live in zip(weight.chunk(parts), live.chunk(parts), strict=True) if parts > 1 else ((weight, live),):
            weights, lives = by_shape[part.shape]
            weights.append(part)
            lives.append(its_live)
    return list(by_shape.values())


def _sets(unit: Unit) -> int:
    """Return how many sets of filters that read the same channels a unit has; none where each filter reads another one."""
    return 0 if unit.in_groups and unit.filters <= unit.groups else unit.groups


def _stacks(
    network: Network, linear: bool = False, compared: bool = False, only: set | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Return filters as rows, (layers, filters, weights), and which are live, (layers, filters): a pair for each shape."""
    by_shape = _by_shape(network, linear, compared, only)
    return [(torch.stack([weight.flatten(1) for weight in weights]), torch.stack(live)) for weights, live in by_shape]


def _sum(network: Network, terms: list[Tensor]) -> Tensor:
    """Return the sum of the terms; 0 where there is none, because removal has left no layer a weight."""
    return torch.stack(terms).sum() if terms else next(network.parameters()).new_zeros(())


def _scales(network: Network) -> list[tuple[Tensor, Tensor]]:
    """Return batch norm's scales behind each convolution, (filters,), each with 1 or 0 for every filter."""
    norms = [(unit.norm.weight, unit) for unit in network.prunable_convolutions.values() if unit.norm is not None]
    return [(scale, unit.alive(precise(scale).dtype)) for scale, unit in norms]


@outside_autocast
def reg_cov(network: Network, *, weight: float = 0.7) -> Tensor:
    """Correlation of a layer's filters, the term of the KSC 2020 paper.

    It is the mean over layers of the mean |C_ij|, i != j, where C is the Pearson correlation between the layer's flattened
    live filters: 0 where they are uncorrelated, 1 where all are copies of one filter. A layer with one live filter gives 0.
    Each group of a convolution in groups is a layer of its own; a depthwise one, of which each filter reads another channel,
    is none, here and in the next two.
    """
    layers = max(sum(map(_sets, network.prunable_convolutions.values())), 1)
    if not torch.compiler.is_compiling():
        terms = [MeanCorrelation.apply(torch.stack(live), *weights) for weights, live in _by_shape(network, compared=True)]
        return weight * (_sum(network, terms) / layers)
    terms = []
    for rows, live in _stacks(network, compared=True):  # a compiler fuses this by itself
        filters = live.sum(-1)
        terms.append((correlations(rows, live).abs().sum((-1, -2)) / (filters * (filters - 1)).clamp_min(1)).sum())
    return weight * (_sum(network, terms) / layers)


@outside_autocast
def reg_cov_ijcai2018(network: Network, *, weight: float = 0.7, tau: float = 1e-4) -> Tensor:
    """Decorrelation as in Zhu, Zhou and Li, IJCAI 2018: sum over layers of ||C_S - diag C_S||_F / |S|.

    C is the Pearson correlation between the layer's flattened filters; S holds the live filters with mean |w| > tau.
    """
    terms = []
    for rows, live in _stacks(network, compared=True):
        live = live * (rows.detach().abs().mean(-1) > tau)
        squares = correlations(rows, live).square().sum((-1, -2))
        # the square root has no derivative at 0
        norm = torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)
        terms.append((norm / live.sum(-1).clamp_min(1)).sum())
    return weight * _sum(network, terms)


@outside_autocast
def reg_ortho(
    network: Network, *, weight: float = 1e-2, iterations: Annotated[int, "at most 100"] = 1, linear: bool = False
) -> Tensor:
    """Spectral restricted isometry (SRIP): Bansal, Chen and Wang, 2018 (arXiv 1810.09102).

    It is the sum over layers of sigma(W W^T - I)^2, where sigma is the spectral norm and W has the live filters as rows; for
    a W with more rows than columns, W^T W takes the place of W W^T. sigma is |A v| with A = W W^T - I and v the normalised
    A^iterations v0; as in the authors' code there is one such iteration, and the gradient goes through v. Their v0 is random,
    here it is fixed, so that no random state is touched. `linear` takes in linear layers, as their code does.
    """
    terms = []
    for rows, live in _stacks(network, linear, compared=True):
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


@outside_autocast
def l1(network: Network, *, weight: float = 1e-5, part: tuple = (0, 1)) -> Tensor:
    """Sum of the absolute weights of all live filters: the sparsity that --prune_imp zero_fraction counts on.

    Singh et al., 2019 (arXiv 1811.08342). With part=(1, 4) it is about the first of four parts of the network, and what
    reads it; see `Network.part`.
    """
    only = network.with_readers(network.part(*part)) if part[0] else None
    return weight * _sum(network, [(rows.abs().sum(-1) * live).sum() for rows, live in _stacks(network, only=only)])


@outside_autocast
def bn_l1(network: Annotated[Network, "batch norm"], *, weight: float = 1e-4) -> Tensor:
    """Sum of batch norm's absolute scales behind all live filters: Network Slimming (Liu et al., 2017, arXiv 1708.06519).

    The derivative of |gamma| at 0 is 0. What --prune_imp bn_scale counts on.
    """
    scales = [(precise(scale), live) for scale, live in _scales(network)]
    return weight * _sum(network, [(scale.abs() * live).sum() for scale, live in scales])


@torch.no_grad()
def bn_l1_proximal(network: Annotated[Network, "batch norm"], step: float, *, weight: float = 1e-4) -> None:
    """Soft-thresholding of batch norm's scales, the ISTA step of Ye et al., 2018 (arXiv 1802.00124): scales become 0 exactly.

    gamma <- sign(gamma) max(|gamma| - step x weight, 0) for all live filters. This is the proximal step of the penalty
    bn_l1, which by itself makes scales small but never 0. `step` is the learning rate of the optimiser's last step. The
    paper weighs each layer by what its filters cost; here all weigh the same.
    """
    for scale, live in _scales(network):
        scale.copy_(scale.sign() * (scale.abs() - step * weight * live).clamp_min(0))


@torch.no_grad()
def sss(
    network: Annotated[Network, "zero filters", "learned scales"],
    step: float,
    *,
    of: Literal["block", "group", "filter"] = "block",
    weight: float = 0.01,
    momentum: Annotated[float, "below 1"] = 0.9,
) -> None:
    """Sparse Structure Selection (Huang and Wang, 2018, arXiv 1707.01213): learned scales of structures become exactly 0.

    A scale of each residual `block`, of each `group` of a convolution in groups, or of each `filter` multiplies its output.
    With g the scale's gradient, z = soft(scale - step x g, step x weight); v <- z - scale + momentum x v; scale <-
    max(z + momentum x v, 0): an accelerated proximal gradient, in place of the optimiser's step; scales and v are of
    pruning/gates/scale.py. What `of` names is put on the network before the first step.
    """
    for unit in network.all_units.values():
        scale = getattr(unit.gate, "scale", None)
        if scale is None or scale.grad is None:
            continue
        v, z = unit.gate.velocity, scale - step * scale.grad
        z = z.sign() * (z.abs() - step * weight).clamp_min(0)
        v.copy_(z - scale + momentum * v)
        scale.copy_((z + momentum * v).clamp_min(0))


@torch.no_grad()
def group_lasso(
    network: Annotated[Network, "zero filters"],
    step: float,
    *,
    of: Literal["filter", "channel", "shape", "layer", "block"] = "filter",
    weight: float = 3e-3,
) -> None:
    """The proximal step of group lasso, Structured Sparsity Learning (Wen et al., 2016, arXiv 1608.03665).

    w_g <- w_g max(1 - step x weight / ||w_g||, 0) for every group of weights, so that groups become exactly 0; the authors'
    code takes the subgradient and sets small weights to 0. A group is a `filter` W[n], a `channel` W[:, c], a `shape`
    W[:, c, y, x], a whole `layer` inside a residual branch, or all layers of a branch, a `block`. A filter whose weights are
    all 0 takes its bias and batch norm's scale and shift along, so that it gives 0. ValueError where there is no group.
    """
    for group, dims, live in _lasso_groups(network, of):
        norm = torch.stack([part.square().sum(dims, keepdim=True) for part in group]).sum(0).sqrt()
        amount = step * weight * live
        factor = torch.where(norm > amount, 1 - amount / norm, 0)
        for part in group:
            part.mul_(factor)
    for unit in network.prunable_convolutions.values():
        gone = (unit.weight.flatten(1) == 0).all(1)
        for vector in (unit.layer.bias, *((unit.norm.weight, unit.norm.bias) if unit.norm is not None else ())):
            if vector is not None:
                vector.masked_fill_(gone, 0)


def _lasso_groups(network: Network, of: str) -> list[tuple[list[Tensor], tuple[int, ...], Tensor | float]]:
    """Return views of weights, (groups, filters, inputs, height, width), the dimensions of a group in them, and what is live.

    Views that stand together have their groups in common. ValueError where there is no group of this kind.
    """
    units = [unit for unit in network.prunable_convolutions.values() if unit.weight.numel()]
    if of in ("layer", "block"):
        branches = [[unit for unit in branch if unit in units] for branch in network.branches.values()]
        groups = branches if of == "block" else [[unit] for branch in branches for unit in branch]
        if not groups:
            raise ValueError(f"of='{of}' is about residual branches, and this network has none")
        return [([_in_groups(unit) for unit in group], (0, 1, 2, 3, 4), 1.0) for group in groups if group]
    dims = {"filter": (2, 3, 4), "channel": (1, 3, 4), "shape": (1,)}[of]
    return [([_in_groups(unit)], dims, _live_rows(unit) if of == "filter" else 1.0) for unit in units]


def _in_groups(unit: Unit) -> Tensor:
    """Return the weight of a convolution as (groups, filters of a group, inputs of a group, height, width)."""
    return unit.weight.view(unit.groups, -1, *unit.weight.shape[1:])


def _live_rows(unit: Unit) -> Tensor:
    return unit.alive(unit.weight.dtype).view(unit.groups, -1, 1, 1, 1)
