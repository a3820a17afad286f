"""ThiNet removes the channels whose sum its readers miss least."""

from typing import Annotated, Literal

import torch
from torch import Tensor

from pruning.readers import nearest_change
from pruning.repair import Problem


def thinet(
    problem: Problem,
    *,
    rows: Annotated[int, "at least 1", "at most 1000000"] = 5000,
    images: Annotated[int, "at least 1", "at most 1000000"] = 500,
    search: Literal["removal", "forward"] = "removal",
    target: Literal["own", "original"] = "own",
) -> tuple[Tensor, list[Tensor]]:
    """Channels greedily, then one factor a channel by least squares (Luo et al., 2017, arXiv 1707.06342).

    x_c is what channel c adds to a product at a random place and filter, y the product. search='removal' takes out, one
    after the other, the channel that keeps ||sum of x_c removed||^2 least; 'forward' (its version of 2018) adds the channel
    that comes nearest to the rest of y by a factor of its own, and refits all factors. The readers' weights are multiplied by
    the factors. y is the sum of all x_c, the network's own as it is now, or with target='original' the product in the network
    before the cut. Where a residual stream is cut nothing is chosen, and all weights are solved for, as by `least_squares`.
    """
    readers = problem.draw(rows, images)
    if not problem.chosen:
        return problem.keep, [reader.solved(problem.keep) for reader in readers]
    terms, wanted = (torch.cat(parts) for parts in zip(*(reader.terms() for reader in readers), strict=True))
    wanted = wanted if target == "original" else terms.sum(1)
    count = int(problem.keep.sum())
    keep = _removal(terms, count) if search == "removal" else _forward(terms, wanted, count)
    factors = torch.ones_like(terms[0])
    factors[keep] += nearest_change(terms[:, keep], wanted - terms[:, keep].sum(1))[:, 0]
    return keep, [reader.weight * factors[:, None] for reader in readers]


def _removal(terms: Tensor, count: int) -> Tensor:
    """Take out the channel that makes the sum of all that are out the smallest, until so many are left; ties by index."""
    gram = terms.T @ terms
    cost = gram.diagonal().clone()  # ||t + x_j||^2 - ||t||^2, where t is the sum of what is out
    keep = torch.ones(len(gram), dtype=torch.bool)
    for _ in range(len(gram) - count):
        out = int(cost.masked_fill(~keep, torch.inf).argmin())
        keep[out] = False
        cost += 2 * gram[out]
    return keep


def _forward(terms: Tensor, wanted: Tensor, count: int) -> Tensor:
    """Add the channel that explains most of what is left of `wanted`, and refit, until there are so many; ties by index."""
    gram, left = terms.T @ terms, terms.T @ wanted
    towards, energy = left.clone(), gram.diagonal()
    keep = torch.zeros(len(gram), dtype=torch.bool)
    for _ in range(count):
        explained = torch.where(energy > 0, left.square() / energy, 0)
        keep[int(explained.masked_fill(keep, -1).argmax())] = True
        factors = torch.linalg.lstsq(gram[keep][:, keep], towards[keep, None], driver="gelsd").solution[:, 0]
        left = towards - gram[:, keep] @ factors
    return keep
