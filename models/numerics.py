"""This file holds computations that need more than the network's own precision, such as the correlation between filters."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

LANES = 16  # floats in the widest vector, that of AVX-512


def precise(values: Tensor) -> Tensor:
    """Return the values in at least float32; float64 stays, so that values which differ only there still differ."""
    return values if values.dtype == torch.float64 else values.float()


def computable(x: Tensor, weight: Tensor, stride: tuple, padding: tuple) -> tuple[Tensor, tuple, tuple]:
    """Return the input, stride and padding of a convolution; of one that oneDNN must not compute, those of an equal one.

    That is for one that learns, on the CPU. A 1x1 convolution with a stride whose filters read fewer channels than a vector has
    lanes has its pixels picked beforehand: where tensors are channels_last, oneDNN writes the gradient of its weight beyond the
    end of that (torch 2.14.1, AVX2, fewer than 8). A map that is smaller than the stride has its zeros put around it
    beforehand: in bfloat16 oneDNN leaves the gradient of weights that meet zeros alone as memory was (torch 2.14.1, AVX-512).
    """
    if not torch.is_grad_enabled() or not weight.requires_grad or x.device.type != "cpu" or max(stride) == 1:
        return x, stride, padding
    if any(pixels < step for pixels, step in zip(x.shape[2:], stride, strict=True)) and max(padding) > 0:
        return F.pad(x, (padding[1], padding[1], padding[0], padding[0])), stride, (0, 0)
    if tuple(weight.shape[2:]) == (1, 1) and max(padding) == 0 and weight.shape[1] < LANES:
        return x[:, :, :: stride[0], :: stride[1]], (1, 1), padding
    return x, stride, padding


def outside_autocast(penalty: Callable) -> Callable:
    """Return a penalty, a function of a network, that is computed in full precision also where the caller has autocast on."""

    @functools.wraps(penalty)
    def precise(network, **options) -> Tensor:
        with torch.autocast(next(network.parameters()).device.type, enabled=False):
            return penalty(network, **options)

    return precise


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


# from so many multiplications in a layer's Gram matrix on, waiting for the mask's values costs less than it saves
LARGE = 10**8


def _with_gradient(rows: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum over layers of the mean |C_ij|, i != j, and its gradient for the rows."""
    rows, inverse = directions(rows, live)
    gram = rows @ rows.mT
    gram.diagonal(dim1=-2, dim2=-1).zero_()
    filters = live.sum(-1)
    pairs = (filters * (filters - 1)).clamp_min(1).view(-1, 1, 1)
    signs = gram.sign().mul_(2 / pairs)
    size = (gram * signs).sum(-1, keepdim=True)
    return size.sum() / 2, torch.baddbmm(size * rows, signs, rows, beta=-1).mul_(inverse)


class MeanCorrelation(torch.autograd.Function):
    """The sum over layers of one shape of the mean |C_ij|, i != j; its gradient is computed in the same pass.

    With U the directions, d_i their inverse lengths and S = 2 sign(C) / (n (n - 1)), the gradient of row i is
    d_i * ((S U)_i - sum_j S_ij C_ij U_i). This takes one product instead of autograd's two, and fewer passes over the rows.
    """

    @staticmethod
    def forward(ctx, live: Tensor, *weights: Tensor) -> Tensor:
        # a correlation does not depend on the order of a filter's weights, so they stay in the order of memory
        last = not weights[0].is_contiguous()
        laid = [(weight.permute(0, 2, 3, 1) if last else weight) for weight in weights]
        rows = torch.stack([weight.flatten(1) for weight in laid])
        ctx.shape, ctx.last = laid[0].shape, last
        if rows.device.type == "cpu" and rows[0].numel() * len(rows[0]) >= LARGE and not live.all():
            # the work grows with the square of the number of live filters, so the others are taken out first
            ctx.gradient, total = torch.zeros_like(rows), rows.new_zeros(())
            for layer, alive, gradient in zip(rows, live.bool(), ctx.gradient, strict=True):
                rows_left = layer[alive].unsqueeze(0)
                size, gradient[alive] = _with_gradient(rows_left, rows_left.new_ones(rows_left.shape[:2]))
                total += size
            return total
        total, ctx.gradient = _with_gradient(rows, live)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor):
        layers = (ctx.gradient * gradient).view(-1, *ctx.shape)
        return None, *(layer.permute(0, 3, 1, 2) if ctx.last else layer for layer in layers)


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


def singular_values(maps: Tensor) -> Tensor:
    """Return the singular values of maps, (images, filters, height, width): (images, filters, the smaller side).

    They are computed from the maps' Gram matrices in float64. Their squares are exact to 2^-52 of the largest, so that
    values of 2^-26 of the largest are told from 0.
    """
    maps = maps.double()
    rows = maps if maps.shape[2] <= maps.shape[3] else maps.mT
    return torch.linalg.eigvalsh(rows @ rows.mT).clamp_min(0).sqrt()
