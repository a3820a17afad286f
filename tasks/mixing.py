"""This file mixes the images of a batch with each other, and their labels, for --mixup."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixed:
    """Targets of mixed images, (images,) each: `labels` with the weight `share`, and the labels of the `others` with the rest."""

    labels: Tensor
    others: Tensor
    share: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def mean(self, of_labels: Tensor, of_others: Tensor) -> Tensor:
        """Return what holds of both labels in their shares."""
        return self.share * of_labels + (1 - self.share) * of_others


def mixed(batches: Iterable[tuple], alpha: float, seed: int, epoch: int) -> Iterator[tuple]:
    """Mix each image x_i of a batch with another x_j: share x_i + (1 - share) x_j (Zhang et al., 2018, arXiv 1710.09412).

    The share is drawn once a batch from Beta(alpha, alpha), and which images go together is a permutation; both depend on seed
    and epoch alone. An `alpha` of 0 leaves the batches, of inputs (images, ...) and labels (images,), as they are.
    """
    if not alpha:
        yield from batches
        return
    chance = np.random.RandomState([seed, epoch, 1])  # beside that of the order, which has seed and epoch alone
    for inputs, labels in batches:
        share = torch.tensor(chance.beta(alpha, alpha), dtype=inputs.dtype, device=inputs.device)
        order = torch.from_numpy(chance.permutation(len(inputs))).to(inputs.device)
        yield share * inputs + (1 - share) * inputs[order], Mixed(labels, labels[order], share)
