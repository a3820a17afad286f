"""These tests are about the integer arithmetic of Jacob et al.: numbers worked out by hand, and exact fractions."""

from fractions import Fraction
from math import floor

import pytest
import torch

from deploy.integers import accumulated, fixed_point, grid, high_product, quantise, real, requantised, shifted

pytestmark = pytest.mark.core
HALF = Fraction(1, 2)


def test_a_range_holds_zero_exactly():
    scale, zero = grid(-1.0, 3.0)
    assert (scale, zero) == (pytest.approx(4 / 255), 64)
    assert [scale * (0 - zero), scale * (255 - zero)] == pytest.approx([-1.003922, 2.996078], abs=1e-6)
    numbers = quantise(torch.tensor([-1, -0.5, 0, 0.1, 2.9, 3]), scale, zero)
    assert numbers.tolist() == [0, 32, 64, 70, 249, 255]
    assert real(numbers, scale, zero)[2] == 0


@pytest.mark.parametrize(("low", "high"), [(0.5, 2.0), (-2.0, -0.5), (0.0, 0.0), (-1e-3, 7.0), (0.0, 1.0)])
def test_every_range_is_widened_to_hold_zero(low, high):
    scale, zero = grid(low, high)
    assert 0 <= zero <= 255
    assert quantise(torch.zeros(1), scale, zero).item() == zero
    ends = real(quantise(torch.tensor([low, high]), scale, zero), scale, zero)
    assert (ends - torch.tensor([low, high])).abs().max() <= scale / 2 + 1e-9


def test_what_is_outside_of_the_range_is_held_at_its_end():
    scale, zero = grid(-1.0, 1.0)
    assert quantise(torch.tensor([-9.0, 9.0]), scale, zero).tolist() == [0, 255]


def test_a_factor_is_an_integer_and_a_shift():
    multiplier, shift = fixed_point(0.002)
    assert (multiplier, shift) == (1099511628, 8)
    assert multiplier / 2**31 == pytest.approx(0.512)
    assert requantised(torch.tensor([[12345]]), torch.tensor([0.002]), 0).item() == 25
    assert fixed_point(1 - 2**-40) == (2**30, -1)  # it is rounded to 1


@pytest.mark.parametrize("factor", [0.0, -0.5, float("inf"), float("nan")])
def test_what_is_no_factor_is_an_error(factor):
    with pytest.raises(ValueError, match="above 0"):
        fixed_point(factor)


def away(value: Fraction) -> int:
    """The nearest integer, a tie away from zero, as a shift rounds."""
    return floor(value + HALF) if value >= 0 else -floor(-value + HALF)


def upwards(value: Fraction) -> int:
    """The nearest integer, a tie upwards, as the product of high halves rounds."""
    return floor(value + HALF)


def test_products_and_shifts_are_rounded_as_fractions_are():
    draw = torch.Generator().manual_seed(0)
    numbers = torch.cat([torch.randint(-(2**31), 2**31, (200,), generator=draw), torch.arange(-20, 21)])
    for multiplier in (2**30, 1099511628, 2**31 - 1):
        wanted = [upwards(Fraction(number * multiplier, 2**31)) for number in numbers.tolist()]
        assert high_product(numbers, multiplier).tolist() == wanted
    for bits in (1, 2, 7):
        assert shifted(numbers, bits).tolist() == [away(Fraction(number, 2**bits)) for number in numbers.tolist()]
    assert shifted(torch.tensor([3, -3]), -2).tolist() == [12, -12]


def test_a_factor_above_one_is_carried_out_too():
    assert requantised(torch.tensor([[7, -7]]), torch.tensor([3.0, 3.0]), 100).tolist() == [[121, 79]]


def test_a_whole_layer():
    x, bias = (torch.tensor(values, dtype=torch.float64) for values in ([[0.2, -0.4, 1.0]], [0.1, -0.2]))
    weight = torch.tensor([[0.5, -0.25, 1.0], [-1.0, 0.75, 0.125]], dtype=torch.float64)
    s1, z1 = grid(-1.0, 1.0)
    s3, z3 = grid(-2.0, 2.0)
    s2 = 1 / 127
    q_x, q_w = quantise(x, s1, z1), quantise(weight, s2, levels=(-127, 127))
    q_b = quantise(bias, s1 * s2, levels=(-(2**31), 2**31 - 1))
    assert (s1, z1, s3, z3) == (pytest.approx(2 / 255), 128, pytest.approx(4 / 255), 128)
    assert q_x.tolist() == [[154, 77, 255]]
    assert q_w.tolist() == [[64, -32, 127], [-127, 95, 16]]
    assert q_b.tolist() == [1619, -3238]
    sums = accumulated(q_x, z1, q_w, q_b)
    assert sums.tolist() == [[21044, -9353]]
    factor = s1 * s2 / s3
    assert factor == pytest.approx(0.003937008)
    assert fixed_point(factor) == (1082196484, 7)
    outputs = requantised(sums, torch.tensor([factor, factor], dtype=torch.float64), z3)
    assert outputs.tolist() == [[211, 91]]
    assert real(outputs, s3, z3)[0].tolist() == pytest.approx([1.301961, -0.580392], abs=1e-6)
    wanted = x @ weight.T + bias
    assert wanted[0].tolist() == pytest.approx([1.3, -0.575])
    assert (real(outputs, s3, z3) - wanted).abs().max() <= s3


def test_the_expanded_sum_is_the_same():
    draw = torch.Generator().manual_seed(0)
    q1, q2 = torch.randint(0, 256, (4, 9), generator=draw), torch.randint(-127, 128, (3, 9), generator=draw)
    z1 = 77
    expanded = (q1[:, None] * q2).sum(2) - z1 * q2.sum(1)
    assert torch.equal(accumulated(q1, z1, q2, torch.zeros(3, dtype=torch.int64)), expanded)


def test_outputs_saturate_and_a_relu_is_where_the_levels_begin():
    sums = torch.tensor([[10**6, -(10**6), 100, -100]])
    factors = torch.full((4,), 0.1)
    assert requantised(sums, factors, 128).tolist() == [[255, 0, 138, 118]]
    assert requantised(sums, factors, 128, levels=(128, 255)).tolist() == [[255, 128, 138, 128]]


def test_a_sum_that_leaves_int32_is_an_error():
    many = torch.full((1, 70_000), 255)
    with pytest.raises(OverflowError, match="32 bits"):
        accumulated(many, 0, torch.full((1, 70_000), 127), torch.zeros(1, dtype=torch.int64))
