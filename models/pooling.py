"""This file holds max-pooling of tensors that removal may have left without channels."""

from torch import Tensor, nn


class Pool(nn.MaxPool2d):
    """Max-pooling that also takes a tensor without channels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.shape[1] else super().forward(x.new_zeros(len(x), 1, *x.shape[2:]))[:, :0]


class Halve(Pool):
    """Max-pooling by 2."""

    def __init__(self):
        super().__init__(2)
