"""This file holds pooling of tensors that removal may have left without channels."""

import torch.nn.functional as F
from torch import Tensor, nn


class Pool(nn.MaxPool2d):
    """Max-pooling that also takes a tensor without channels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.shape[1] else super().forward(x.new_zeros(len(x), 1, *x.shape[2:]))[:, :0]


class Halve(Pool):
    """Max-pooling by 2."""

    def __init__(self):
        super().__init__(2)


def pooled(x: Tensor, step: dict) -> Tensor:
    """Return what a pooling step of a program (models/program.py) makes of maps, (images, channels, height, width)."""
    if not x.shape[1]:
        return pooled(x.new_zeros(len(x), 1, *x.shape[2:]), step)[:, :0]
    if step["do"] == "adaptive_average":
        return F.adaptive_avg_pool2d(x, step["size"])
    window = (step["kernel"], step["stride"], step["padding"])
    if step["do"] == "max_pool":
        return F.max_pool2d(x, *window, step["dilation"], step["ceil_mode"])
    return F.avg_pool2d(x, *window, step["ceil_mode"], step["count_include_pad"], step["divisor"])
