"""What is computed in more than the network's own precision stands here, and the correlation between filters."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def precise(values: Tensor) -> Tensor:
    """At least float32; what is told apart in float64 stays apart."""
    return values if values.dtype == torch.float64 else values.float()


def directions(rows: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
    """Rows centred and scaled to length 1, those that are constant or not live 0; and 1 / length of each row.

    `rows` are (..., rows, values) and `live` is 1 or 0 for each, (..., rows). Shapes (..., rows, values), (..., rows, 1).
    """
    centred = rows - rows.mean(-1, keepdim=True)
    squares = centred.square().sum(-1, keepdim=True)
    # what rounding leaves of a constant row is no direction
    varies = squares > 1e-12 * rows.detach().square().sum(-1, keepdim=True)
    inverse = torch.where(varies, squares, 1.0).rsqrt() * varies * live.unsqueeze(-1)
    return centred * inverse, inverse


def correlations(rows: Tensor, live: Tensor) -> Tensor:
    """Pearson correlation between rows, (..., rows, rows), 0 on the diagonal and for a row that is constant or not live."""
    unit, _ = directions(rows, live)
    gram = unit @ unit.mT
    return gram * (1 - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device))


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
