"""This criterion, PFA, drops the filters whose responses the others predict."""

from typing import Annotated, Literal

import torch
from torch import Tensor

from models import Unit
from pruning.context import Context


def PFA(
    units: Annotated[dict[str, Unit], "filters only"],
    context: Annotated[Context, "reads images", "reads maps", "more images than filters"],
    *,
    counts: Literal["given", "KL", "energy"] = "given",
    tau: Annotated[float, "at most 1", "needs counts='energy'"] = 0.95,
) -> dict[str, Tensor]:
    """Principal filter analysis (Suau et al., 2018, arXiv 1807.10585): filters whose responses others predict go first.

    A filter's response to an image is the largest value of its feature map. Again and again the filter is dropped whose sum
    of |correlation| with those that remain is the largest; its score is the fraction of the layer dropped until then.
    counts='KL' and 'energy' find their own counts from the eigenvalues of the responses' covariance: they keep ceil(filters
    x (1 - KL(spectrum || uniform) / log filters)), or as many as hold `tau` of the eigenvalues' sum.
    """
    scores = {}
    for name, responses in context.responses(units, lambda maps: maps.double().amax((2, 3))).items():
        covariance = responses.T.cov().view(responses.shape[1], responses.shape[1])
        order = _dropped(covariance)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        if counts == "given":
            scores[name] = (rank + 1).double() / len(order)
        else:
            spectrum = torch.linalg.eigvalsh(covariance).clamp_min(0).flip(0)
            kept = _by_entropy(spectrum) if counts == "KL" else _by_energy(spectrum, tau)
            scores[name] = rank >= len(order) - kept
    return scores


def _by_entropy(spectrum: Tensor) -> int:
    """Return how many filters to keep: ceil(filters x entropy of the spectrum / log filters), at least 1."""
    filters, parts = len(spectrum), spectrum / spectrum.sum().clamp_min(1e-30)
    entropy = -torch.special.xlogy(parts, parts).sum()
    ratio = float(entropy) / max(float(torch.tensor(float(filters)).log()), 1e-30)
    return min(max(int(-(-(filters * ratio - 1e-6) // 1)), 1), filters)


def _by_energy(spectrum: Tensor, tau: float) -> int:
    """Return the smallest number of eigenvalues that hold `tau` of their sum, at least 1."""
    held = spectrum.cumsum(0) / spectrum.sum().clamp_min(1e-30)
    return min(int((held < tau - 1e-9).sum()) + 1, len(spectrum))


def _dropped(covariance: Tensor) -> Tensor:
    """Return the order in which filters are dropped, (filters,) int64.

    Filters whose response never changes go first; then always the one with the largest sum of |correlation| with those
    that remain, among equals the one with the larger single correlation, then the one with the lower index.
    """
    variance = covariance.diagonal()
    quiet = variance <= 1e-8 * variance.max()
    deviation = variance.sqrt().masked_fill(quiet, 1)
    related = (covariance / deviation / deviation.unsqueeze(1)).abs()
    related[quiet] = 0
    related[:, quiet] = 0
    related.fill_diagonal_(0)
    related = related.cpu()
    order = quiet.cpu().nonzero().flatten().tolist()
    remaining = [number for number in range(len(variance)) if number not in {*order}]
    sums = related.sum(1)
    while remaining:
        rows = torch.tensor(remaining)
        sum_of = sums[rows]
        tied = rows[sum_of >= sum_of.max() - 1e-12]
        if len(tied) > 1:
            single = related[tied][:, rows].amax(1)
            tied = tied[single >= single.max() - 1e-12]
        worst = int(tied[0])
        order.append(worst)
        remaining.remove(worst)
        sums -= related[worst]
    return torch.tensor(order, device=covariance.device)
