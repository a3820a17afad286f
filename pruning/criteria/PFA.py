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
    tau: Annotated[float, "fraction"] = 0.95,
) -> dict[str, Tensor]:
    """Principal filter analysis (Suau et al., 2018, arXiv 1807.10585): filters whose responses others predict go first.

    A response is the largest value of a feature map. The filter with the largest sum of |correlation| with those that are
    left is dropped, and so on; the score is the fraction of the layer dropped before it. counts='KL' and 'energy' find
    their own counts from the eigenvalues of the responses' covariance: ceil(filters x (1 - KL(spectrum || uniform) / log
    filters)), or as many as hold `tau` of their sum.
    """
    scores = {}
    for name, responses in context.responses(units, lambda maps: maps.double().amax((2, 3))).items():
        covariance = responses.T.cov().view(responses.shape[1], responses.shape[1])
        order = _dropped(covariance)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        if counts == "given":
            scores[name] = (place + 1).double() / len(order)
        else:
            spectrum = torch.linalg.eigvalsh(covariance).clamp_min(0).flip(0)
            kept = _by_entropy(spectrum) if counts == "KL" else _by_energy(spectrum, tau)
            scores[name] = place >= len(order) - kept
    return scores


def _by_entropy(spectrum: Tensor) -> int:
    """ceil of the filters times the spectrum's entropy / log filters; at least 1."""
    shares = spectrum / spectrum.sum().clamp_min(1e-30)
    entropy = -torch.special.xlogy(shares, shares).sum()
    ratio = float(entropy) / max(float(torch.tensor(float(len(shares))).log()), 1e-30)
    return min(max(int(-(-(len(shares) * ratio - 1e-6) // 1)), 1), len(shares))


def _by_energy(spectrum: Tensor, tau: float) -> int:
    """The smallest number of eigenvalues that hold tau of their sum; at least 1."""
    held = spectrum.cumsum(0) / spectrum.sum().clamp_min(1e-30)
    return min(int((held < tau - 1e-9).sum()) + 1, len(spectrum))


def _dropped(covariance: Tensor) -> Tensor:
    """The order in which filters go: those that never respond, then by the largest sum of |correlation| with the rest.

    Among equals the one with the larger single correlation, then the lower index.
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
    left = [number for number in range(len(variance)) if number not in {*order}]
    sums = related.sum(1)
    while left:
        rows = torch.tensor(left)
        sum_of = sums[rows]
        tied = rows[sum_of >= sum_of.max() - 1e-12]
        if len(tied) > 1:
            single = related[tied][:, rows].amax(1)
            tied = tied[single >= single.max() - 1e-12]
        worst = int(tied[0])
        order.append(worst)
        left.remove(worst)
        sums -= related[worst]
    return torch.tensor(order, device=covariance.device)
