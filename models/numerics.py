"""This file holds computations that need more than the network's own precision, such as the correlation between filters."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def precise(values: Tensor) -> Tensor:
    """Return the values in at least float32; float64 stays, so that values which differ only there still differ."""
    return values if values.dtype == torch.float64 else values.float()


def directions(rows: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
    """Centre every row and scale it to length 1; a row that is constant or not live becomes 0.

    `rows` has the shape (..., rows, values), `live` is 1 or 0 for each row, (..., rows). Returns the directions,
    (..., rows, values), and the inverse length of each centred row, (..., rows, 1).
    """
    centred = rows - rows.mean(-1, keepdim=True)
    squares = centred.square().sum(-1, keepdim=True)
    # what rounding leaves of a constant row is no direction
    varies = squares > 1e-12 * rows.detach().square().sum(-1, keepdim=True)
    inverse = torch.where(varies, squares, 1.0).rsqrt() * varies * live.unsqueeze(-1)
    return centred * inverse, inverse


def correlations(rows: Tensor, live: Tensor) -> Tensor:
    """Return the Pearson correlation between rows, (..., rows, rows).

    It is 0 on the diagonal and for a row that is constant or not live; the arguments are those of `directions`.
    """
    unit, _ = directions(rows, live)
    gram = unit @ unit.mT
    return gram * (1 - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device))


@contextmanager
def without_tf32() -> Iterator[None]:
    """Within this block float32 products use the whole mantissa, also on devices that would shorten it to ten bits."""
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = False
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value
