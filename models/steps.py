"""This file computes the pooling steps of a program (models/program.py), also of maps that removal has left without channels."""

import torch.nn.functional as F
from torch import Tensor


def pooled(x: Tensor, step: dict) -> Tensor:
    """Return what a pooling step makes of maps, (images, channels, height, width)."""
    if not x.shape[1]:
        return pooled(x.new_zeros(x.shape[0], 1, *x.shape[2:]), step)[:, :0]
    if step["do"] == "adaptive_average":
        return F.adaptive_avg_pool2d(x, step["size"])
    window = (step["kernel"], step["stride"], step["padding"])
    if step["do"] == "max_pool":
        return F.max_pool2d(x, *window, step["dilation"], step["ceil_mode"])
    return F.avg_pool2d(x, *window, step["ceil_mode"], step["count_include_pad"], step["divisor"])
