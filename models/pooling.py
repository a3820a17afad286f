"""This file holds pooling of tensors that removal may have left without channels."""

import torch.nn.functional as F
from torch import Tensor, nn


class Pool(nn.MaxPool2d):
    """Max-pooling that also takes a tensor without channels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.shape[1] else super().forward(x.new_zeros(x.shape[0], 1, *x.shape[2:]))[:, :0]


class Halve(Pool):
    """Max-pooling by 2."""

    def __init__(self):
        super().__init__(2)


class Averaged(nn.Module):
    """Maps of any size averaged to `side` x `side` pixels; maps of that size stay as they are.

    Parts of a map that do not divide evenly overlap, and of a smaller map pixels are repeated, as torch defines that.
    """

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] == (self.side, self.side):
            return x
        return F.adaptive_avg_pool2d(x, self.side) if x.shape[1] else x.new_zeros(x.shape[0], 0, self.side, self.side)
