"""Numerical precision: what is computed in more than the network's own."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def precise(values: Tensor) -> Tensor:
    """At least float32; what is told apart in float64 stays apart."""
    return values if values.dtype == torch.float64 else values.float()


@contextmanager
def without_tf32() -> Iterator[None]:
    """float32 products with all of float32's mantissa, on devices that otherwise shorten it to ten bits."""
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = False
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value
