"""Decompositions are held against exact cases, published bounds and values of another implementation (tensorly 0.10)."""

import pytest
import torch
import torch.nn.functional as F

from pruning.decomposition import evbmf, matrix_factors, product, relative_error, tucker_factors


def kernel_of(filters: int = 8, channels: int = 6) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(filters, channels, 3, 3, dtype=torch.float64)


@pytest.mark.core
def test_errors_are_those_of_hosvd_and_hooi():
    """For 4 of 8 filters and 3 of 6 channels; HOSVD is HOOI without a sweep."""
    kernel = kernel_of()
    assert relative_error(kernel, tucker_factors(kernel, [3, 4], sweeps=0)) == pytest.approx(0.769728, abs=1e-5)
    assert relative_error(kernel, tucker_factors(kernel, [3, 4])) == pytest.approx(0.744924, abs=1e-5)


@pytest.mark.core
def test_a_sweep_never_raises_the_error_and_norms_add_up():
    kernel, before = kernel_of(), 1.0
    for sweeps in range(5):
        factors = tucker_factors(kernel, [4, 3], sweeps)
        error = relative_error(kernel, factors)
        assert error <= before + 1e-12
        # the factors are orthonormal, so that what is kept and what is left out make up the whole
        assert error**2 + float(factors[1].square().sum() / kernel.square().sum()) == pytest.approx(1, abs=1e-12)
        before = error


@pytest.mark.core
def test_full_ranks_and_kernels_of_low_rank_are_exact():
    kernel = kernel_of()
    assert relative_error(kernel, tucker_factors(kernel, [6, 8])) < 1e-9
    core, left, right = torch.randn(2, 2, 3, 3).double(), torch.randn(8, 2).double(), torch.randn(6, 2).double()
    low = torch.einsum("abij,ta,sb->tsij", core, left, right)
    factors = tucker_factors(low, [2, 2])
    assert [tuple(factor.shape) for factor in factors] == [(2, 6), (2, 2, 3, 3), (8, 2)]
    assert relative_error(low, factors) < 1e-9
    assert relative_error(torch.zeros(4, 3, 3, 3), tucker_factors(torch.zeros(4, 3, 3, 3), [2, 2])) == 0


@pytest.mark.core
def test_a_matrix_has_the_best_factors_of_its_rank():
    """Eckart and Young: the error is what the singular values left out amount to."""
    matrix = torch.randn(5, 9, dtype=torch.float64)
    values = torch.linalg.svdvals(matrix)
    for rank in (1, 3, 5):
        factors = matrix_factors(matrix, rank)
        assert [tuple(factor.shape) for factor in factors] == [(rank, 9), (5, rank)]
        assert relative_error(matrix, factors) == pytest.approx(float(values[rank:].norm() / values.norm()), abs=1e-12)
        # both carry the square roots of the singular values
        assert factors[0].norm(dim=1).tolist() == pytest.approx(factors[1].norm(dim=0).tolist())


@pytest.mark.parametrize("geometry", [{"padding": 1}, {"stride": 2, "padding": 1}, {"stride": (1, 2), "dilation": 2}])
def test_a_chain_is_the_convolution_with_the_kernel_that_it_stands_for(geometry):
    kernel, x = kernel_of(), torch.randn(2, 6, 9, 9, dtype=torch.float64)
    inputs, core, outputs = factors = tucker_factors(kernel, [3, 4])
    chain = F.conv2d(F.conv2d(F.conv2d(x, inputs[:, :, None, None]), core, **geometry), outputs[:, :, None, None])
    assert (chain - F.conv2d(x, product(factors), **geometry)).abs().max() < 1e-12


def noisy(rank: int, scale: float, noise: float) -> torch.Tensor:
    torch.manual_seed(0)
    signal = torch.randn(64, rank).double() @ torch.randn(rank, 576).double()
    return scale * signal + noise * torch.randn(64, 576).double()


@pytest.mark.core
@pytest.mark.parametrize(("rank", "scale", "noise"), [(3, 5, 0.1), (8, 1, 0.05), (5, 1, 0.5), (0, 0, 1.0)])
def test_vbmf_finds_the_rank_and_the_noise(rank, scale, noise):
    matrix = noisy(rank, scale, noise)
    found, variance = evbmf(matrix)
    assert found == rank
    assert variance == pytest.approx(noise**2, rel=0.03)
    turned, same = evbmf(matrix.T)  # more rows than columns, as the first convolution of a network has
    assert (turned, same) == (rank, pytest.approx(variance, rel=1e-9))


@pytest.mark.core
def test_fresh_weights_have_no_rank_and_odd_matrices_an_estimate():
    torch.manual_seed(0)
    he = torch.nn.init.kaiming_normal_(torch.empty(64, 64, 3, 3))
    assert evbmf(he.flatten(1))[0] == 0
    for shape in ((1, 9), (9, 1), (5, 5)):
        assert evbmf(torch.randn(shape))[0] <= min(shape)
    assert evbmf(torch.zeros(4, 9))[0] == 0
