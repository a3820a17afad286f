"""This file is the arithmetic of networks in 8 bits, on integers alone: what the files of --form int8 are checked against.

The scheme is that of Jacob et al., 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference" (arXiv 1712.05877); rounding is that of their gemmlowp. A real number r is held as an
integer q with r = S (q - Z), where the scale S is a float and the zero point Z an integer, so that 0 is held exactly. No
runtime computes with this file: it says what a runtime should give, to one unit.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BYTE = (0, 255)
INT32 = 2**31


def grid(low: float, high: float, levels: tuple[int, int] = BYTE) -> tuple[float, int]:
    """Return scale and zero point of a range of real numbers, which is widened to hold 0.

    S = (high - low) / (levels - 1) and Z = round(-low / S), within the levels. A range of 0 alone has the scale 1.
    """
    low, high, (least, most) = min(low, 0.0), max(high, 0.0), levels
    scale = (high - low) / (most - least) or 1.0
    return scale, min(max(round(least - low / scale), least), most)


def quantise(values: Tensor, scale: Tensor | float, zero: int = 0, levels: tuple[int, int] = BYTE) -> Tensor:
    """Return the integers nearest to real numbers, round(r / S) + Z, within the levels, int64. A tie goes to the even one."""
    return ((values.double() / scale).round() + zero).clamp(*levels).long()


def real(numbers: Tensor, scale: Tensor | float, zero: int = 0) -> Tensor:
    """Return the real numbers that integers stand for, S (q - Z), float64."""
    return (numbers - zero).double() * scale


def fixed_point(factor: float) -> tuple[int, int]:
    """Return M0 and n of a factor above 0, M0 2^-31 2^-n, with M0 of 31 bits: from 2^30 up to 2^31. ValueError for others."""
    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"a factor is a finite number above 0, not {factor}")
    fraction, exponent = math.frexp(factor)  # fraction is in [0.5, 1)
    whole = round(fraction * INT32)
    return (whole // 2, -exponent - 1) if whole == INT32 else (whole, -exponent)


def high_product(numbers: Tensor, multiplier: int) -> Tensor:
    """Return numbers x multiplier / 2^31, of int32 both, rounded to the nearest, a tie upwards, and saturated."""
    return (numbers * multiplier + 2**30 >> 31).clamp(-INT32, INT32 - 1)


def shifted(numbers: Tensor, bits: int) -> Tensor:
    """Return numbers / 2^bits, rounded to the nearest, a tie away from zero."""
    if bits <= 0:
        return (numbers << -bits).clamp(-INT32, INT32 - 1)
    half = 1 << (bits - 1)
    return torch.where(numbers >= 0, numbers + half >> bits, -(-numbers + half >> bits))


def requantised(sums: Tensor, factors: Tensor, zero: int, levels: tuple[int, int] = BYTE) -> Tensor:
    """Return the integers of an output for the sums of a layer, (images, filters, ...).

    `factors` are M = S1 S2 / S3, (filters,): each is carried out as a multiplication by an integer and a shift. The levels
    are those of the output; a ReLU is that none is below its zero point.
    """
    outputs = torch.empty_like(sums)
    for number, factor in enumerate(factors.double().tolist()):
        multiplier, shift = fixed_point(factor)
        own = sums[:, number]
        # a factor of 1 and more is a shift to the left, before the product
        own = high_product(shifted(own, min(shift, 0)), multiplier)
        outputs[:, number] = shifted(own, max(shift, 0)) + zero
    return outputs.clamp(*levels)


def accumulated(inputs: Tensor, zero: int, weight: Tensor, bias: Tensor, **geometry) -> Tensor:
    """Return a layer's sums, sum (q1 - Z1) q2 + bias, for integers of inputs and weights whose zero point is 0.

    The weight is (filters, channels, height, width) or (filters, inputs); `geometry` is that of a convolution, as torch
    names it. OverflowError where a sum does not fit into int32.
    """
    # float64 holds integers up to 2^53 exactly, and unlike int64 it has a convolution
    x, w, b = (numbers.double() for numbers in (inputs - zero, weight, bias))
    sums = F.linear(x, w, b) if weight.dim() == 2 else F.conv2d(x, w, b, **geometry)
    if sums.numel() and not -INT32 <= float(sums.min()) <= float(sums.max()) < INT32:
        raise OverflowError("a sum of products does not fit into 32 bits")
    return sums.long()
