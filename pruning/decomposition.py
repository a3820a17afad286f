"""This file decomposes kernels and matrices into factors of lower rank, and estimates ranks; everything is float64.

tensorly offers Tucker too. It is not used: it brings a dependency that it does not declare, and estimates no ranks.
"""

import math

import torch
from torch import Tensor

SWEEPS, TOLERANCE = 30, 1e-5  # of HOOI: it ends where a sweep lets the square of the relative error fall by less


def matrix_factors(matrix: Tensor, rank: int) -> list[Tensor]:
    """Return the factors (rank, columns) and (rows, rank) whose product is the nearest matrix of this rank to (rows, columns).

    They are U sqrt(s) and sqrt(s) V of the singular-value decomposition, so that weight decay acts on both alike.
    """
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    root = values[:rank].sqrt()
    return [root[:, None] * right[:rank], left[:, :rank] * root]


def tucker_factors(kernel: Tensor, ranks: list[int], sweeps: int = SWEEPS) -> list[Tensor]:
    """Return the three factors of Tucker-2 of a kernel (T, S, D, D) for ranks [R3, R4]; Kim et al., 2016 (arXiv 1511.06530).

    They are V' (R3, S), the core (R4, R3, D, D) and U (T, R4): kernel[t, s] is about the sum over a and b of U[t, a] core[a, b]
    V[s, b]. U and V begin as the leading left singular vectors of the kernel's unfoldings (HOSVD; De Lathauwer et al.,
    2000a). Each sweep takes those of the kernel that the other factor has projected (HOOI; De Lathauwer et al., 2000b), which
    never raises the error.
    """
    kernel = kernel.double()
    outputs, inputs = _leading(kernel, ranks[1]), _leading(kernel.transpose(0, 1), ranks[0])
    left, total = math.inf, float(kernel.square().sum())
    for _ in range(sweeps):
        core = _projected(kernel, outputs, inputs)
        before, left = left, 1 - float(core.square().sum()) / max(total, 1e-300)
        if before - left <= TOLERANCE:
            break
        outputs = _leading(torch.einsum("tsij,sb->tbij", kernel, inputs), ranks[1])
        inputs = _leading(torch.einsum("tsij,ta->saij", kernel, outputs), ranks[0])
    return [inputs.T.contiguous(), _projected(kernel, outputs, inputs), outputs]


def product(factors: list[Tensor]) -> Tensor:
    """Return the matrix or the kernel that factors stand for, as `matrix_factors` and `tucker_factors` return them."""
    if len(factors) == 2:
        return factors[1] @ factors[0]
    inputs, core, outputs = factors
    return torch.einsum("ta,abij,bs->tsij", outputs, core, inputs)


def relative_error(weight: Tensor, factors: list[Tensor]) -> float:
    """Return the norm of what the factors leave out of a weight, as a fraction of the weight's norm; 0 for a weight of zeros."""
    weight = weight.double()
    norm = float(weight.norm())
    return float((product(factors).view_as(weight) - weight).norm()) / norm if norm else 0.0


def _projected(kernel: Tensor, outputs: Tensor, inputs: Tensor) -> Tensor:
    return torch.einsum("tsij,ta,sb->abij", kernel, outputs, inputs)


def _leading(tensor: Tensor, rank: int) -> Tensor:
    """Return the `rank` leading left singular vectors of the unfolding (rows, all the rest), as columns.

    They are eigenvectors of its Gram matrix, which is small; orthonormal whatever the singular values are.
    """
    rows = tensor.flatten(1)
    return torch.linalg.eigh(rows @ rows.T).eigenvectors.flip(1)[:, :rank].contiguous()


def evbmf(matrix: Tensor) -> tuple[int, float]:
    """Return the rank of a noisy matrix by empirical variational Bayes, and the variance of the noise that it estimates.

    Nakajima et al., 2013 (JMLR 14): with L rows, M >= L columns, alpha = L / M and noise of variance v, a singular value s
    counts where s^2 > M v x, x = (1 + t)(1 + alpha / t), t = 2.5129 sqrt(alpha); v minimises the free energy. Rows and
    columns are exchanged where there are more rows.
    """
    matrix = matrix.double()
    matrix = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    rows, columns = matrix.shape
    squares = torch.linalg.eigvalsh(matrix @ matrix.T).flip(0).clamp_min(1e-300)
    alpha = rows / columns
    tau = 2.5129 * math.sqrt(alpha)
    limit = (1 + tau) * (1 + alpha / tau)
    noise = min(math.ceil(rows / (1 + alpha)) - 1, rows)  # from this value on all are noise
    high = float(squares.sum()) / (rows * columns)
    low = min(max(float(squares[min(noise, rows - 1)]) / (columns * limit), float(squares[noise:].mean()) / columns), high)
    variance = _minimum(lambda variances: _free_energy(squares, variances, columns, alpha, limit), low, high)
    return int((squares > columns * variance * limit).sum()), variance


def _free_energy(squares: Tensor, variances: Tensor, columns: int, alpha: float, limit: float) -> Tensor:
    """Return the free energy for each variance of the noise, (variances,), up to a constant."""
    x = squares / (columns * variances[:, None])
    signal = x > limit
    beyond = torch.where(signal, x, limit)  # where the square root exists
    tau = (beyond - (1 + alpha) + ((beyond - (1 + alpha)).square() - 4 * alpha).sqrt()) / 2
    gained = beyond - tau + ((tau + 1) / beyond).log() + alpha * (tau / alpha + 1).log()
    return torch.where(signal, gained, x - x.log()).sum(1)


def _minimum(function, low: float, high: float, points: int = 257) -> float:
    """Return where a function of a tensor is smallest between two numbers: on a grid, which is made finer around its minimum."""
    for _ in range(8):
        grid = torch.linspace(math.log(low), math.log(high), points, dtype=torch.float64).exp()
        best = int(function(grid).argmin())
        low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, points - 1)])
        if high - low <= 1e-12 * high:
            break
    return float(grid[best])
