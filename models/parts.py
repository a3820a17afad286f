"""This file defines modules that stand in units: a linear layer over a whole map, and dropout."""

import torch
from torch import Tensor, nn


class WholeMap(nn.Conv2d):
    """A linear layer that reads a whole map, (channels, size, size): written as a convolution whose kernel is the map.

    So its columns belong to channels as those of any convolution do. Its output is one pixel.
    """

    def __init__(self, channels: int, outputs: int, size: int):
        super().__init__(channels, outputs, size)


class Dropout(nn.Module):
    """Dropout sets each number to 0 with probability `rate` while it trains, and divides the others by 1 - rate.

    Srivastava et al., 2014, JMLR 15. `original` is the rate it was made with. The rate in force is a buffer, so that a
    checkpoint keeps it and a captured pass sees it change.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.original = rate
        self.register_buffer("rate", torch.tensor(rate))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        # drawn in float32: of bfloat16 there are too few numbers below 1
        kept = torch.rand(x.shape, device=x.device) >= self.rate
        return x * (kept / (1 - self.rate)).to(x.dtype)
