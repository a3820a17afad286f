"""The lasso chooses channels by what each adds to the products of those that read it."""

import warnings
from typing import Annotated

import torch
from torch import Tensor

from pruning.readers import Reader
from pruning.repair import Problem

FIRST, TRIES = 1e-3, 80


def lasso(
    problem: Problem,
    *,
    rows: Annotated[int, "at least 1", "at most 1000000"] = 5000,
    images: Annotated[int, "at least 1", "at most 1000000"] = 500,
) -> tuple[Tensor, list[Tensor]]:
    """Channels by the lasso, then all weights by least squares (He, Zhang and Sun, 2017, arXiv 1707.06168).

    min over beta of 1/(2M) ||Y - sum_c beta_c Z_c||^2 + alpha |beta|_1, without an intercept, where Z_c = X_c W_c' is what
    channel c adds to the M products of all samples and filters, and Y is the product in the network before the cut. alpha is
    doubled from 1e-3 until few enough are not 0, then bisected; where no alpha gives the number, the largest |beta| stay.
    """
    readers = problem.draw(rows, images)
    keep = _chosen(readers, int(problem.keep.sum())) if problem.chosen else problem.keep
    return keep, [reader.solved(keep) for reader in readers]


def _chosen(readers: list[Reader], count: int) -> Tensor:
    """Return which channels stay, (channels,) bool, so many of them."""
    gram = sum(_gram(reader) for reader in readers)
    products = sum(reader.wanted.numel() for reader in readers)
    energy, channels = gram.diagonal()[:-1], len(gram) - 1
    # a square root of the Gram matrix has the same sums of squares in as many rows as columns
    values, vectors = torch.linalg.eigh(gram)
    root = values.clamp_min(0).sqrt()[:, None] * vectors.T * (len(gram) / products) ** 0.5
    fit, beta, fewest = _fitting(root[:, :-1], root[:, -1]), torch.zeros(channels, dtype=gram.dtype), channels + 1
    low, high, alpha = 0.0, None, FIRST
    for _ in range(TRIES):
        tried = fit(alpha)
        found = int((tried != 0).sum())
        if count <= found < fewest:
            beta, fewest = tried, found
        if found == count:
            break
        low, high = (alpha, high) if found > count else (low, alpha)
        alpha = 2 * alpha if high is None else (low + high) / 2
    best_first = energy.argsort(descending=True, stable=True)
    best_first = best_first[beta[best_first].abs().argsort(descending=True, stable=True)]
    keep = torch.zeros(channels, dtype=torch.bool)
    keep[best_first[:count]] = True
    return keep


def _gram(reader: Reader) -> Tensor:
    """Return the inner products of what each channel adds to all products, and of what is wanted, one more channel."""
    inputs, weight = reader.inputs.flatten(1), reader.weight.flatten(1)
    channels, patch = reader.inputs.shape[1:]
    # Z_c'Z_d is the sum over both patches of (X_c'X_d) (W_c'W_d), so that Z itself is never made
    among = ((inputs.T @ inputs) * (weight.T @ weight)).view(channels, patch, channels, patch).sum((1, 3))
    wanted = ((inputs.T @ reader.wanted) * weight.T).view(channels, -1).sum(1)
    gram = inputs.new_zeros(channels + 1, channels + 1)
    gram[:-1, :-1], gram[-1, :-1], gram[:-1, -1], gram[-1, -1] = among, wanted, wanted, reader.wanted.square().sum()
    return gram


def _fitting(columns: Tensor, wanted: Tensor):
    """Return a function that maps alpha to the lasso's beta, each time going on from the one before."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import Lasso

    # without a random state of its own it would move NumPy's global one
    model = Lasso(fit_intercept=False, warm_start=True, max_iter=5000, random_state=0)
    columns, wanted = columns.numpy(), wanted.numpy()

    def fit(alpha: float) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # near alpha 0 the last digits take long and choose nothing
            return torch.from_numpy(model.set_params(alpha=alpha).fit(columns, wanted).coef_.copy())

    return fit
