"""This file lets weights share values, by k-means."""

import numpy as np
import torch
from torch import Tensor


def shared(weight: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the number of each weight's value, of the weight's shape, int64, and the values, (1 + at most `most`,) float32.

    Number 0 stands for 0. k-means begins with values evenly spread from the least to the largest weight, which keeps the
    large ones apart (the paper's linear initialisation).
    """
    numbers = torch.zeros(weight.shape, dtype=torch.int64, device=weight.device)
    left = weight != 0
    values, places = k_means(weight[left].cpu().numpy(), most)
    numbers[left] = torch.from_numpy(places + 1).to(weight.device)
    return numbers, torch.from_numpy(np.concatenate([[0.0], values])).float().to(weight.device)


def k_means(weights: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `most` values that weights, (n,), share, and the place of each weight's value among them, (n,) int64."""
    distinct = np.unique(weights)
    if len(distinct) <= most:
        return distinct, np.searchsorted(distinct, weights)
    from sklearn.cluster import KMeans

    start = np.linspace(distinct[0], distinct[-1], most, dtype=np.float64)
    found = KMeans(most, init=start[:, None], n_init=1, max_iter=100).fit(weights.astype(np.float64)[:, None])
    return found.cluster_centers_[:, 0], found.labels_.astype(np.int64)
