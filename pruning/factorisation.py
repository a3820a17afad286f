"""This file chooses how layers are factorised. Each public function is an answer to --factorise.

A factorisation takes a network, without gates, and the pixels of a side of its images; it returns a `Choice`. Exactly one of
its options says how much stays: ranks='VBMF', or a `fraction` of each full rank, or `macs` or `params`, the fraction of the
whole network's multiply-accumulates or parameters that may be left. The count of a chain is exact: where the layer has a stride,
the first 1x1 convolution of Tucker still runs on all pixels that the layer reads.
"""

from typing import Annotated, Literal

from models import Network
from pruning.factors import Choice, Layer, within


def tucker(
    network: Network,
    image_size: int,
    *,
    ranks: Literal["none", "VBMF"] = "none",
    fraction: Annotated[float, "above 0", "at most 1"] = 0.0,
    macs: Annotated[float, "above 0", "below 1"] = 0.0,
    params: Annotated[float, "above 0", "below 1"] = 0.0,
    weaken: Annotated[float, "at most 1", "needs ranks='VBMF'"] = 0.0,
) -> Choice:
    """Tucker-2 of k x k convolutions, and svd of 1x1 convolutions and linear layers (Kim et al., 2016, arXiv 1511.06530).

    ranks='VBMF' estimates the ranks of both unfoldings of a kernel; `weaken` goes this part of the way back to the full rank.
    """
    return _chosen(network, image_size, True, ranks == "VBMF", weaken, fraction, {"macs": macs, "parameters": params})


def svd(
    network: Network,
    image_size: int,
    *,
    ranks: Literal["none", "VBMF"] = "none",
    fraction: Annotated[float, "above 0", "at most 1"] = 0.0,
    macs: Annotated[float, "above 0", "below 1"] = 0.0,
    params: Annotated[float, "above 0", "below 1"] = 0.0,
    weaken: Annotated[float, "at most 1", "needs ranks='VBMF'"] = 0.0,
) -> Choice:
    """Two factors of each 1x1 convolution and linear layer by singular values (Denton et al., 2014, arXiv 1404.0736).

    The options are those of tucker.
    """
    return _chosen(network, image_size, False, ranks == "VBMF", weaken, fraction, {"macs": macs, "parameters": params})


def _chosen(
    network: Network, image_size: int, kernels: bool, estimate: bool, weaken: float, fraction: float, budgets: dict[str, float]
) -> Choice:
    """Return the ranks of the layers, also those of k x k `kernels`, and why the others stay as they are.

    ValueError where a budget cannot be met.
    """
    layers = Layer.all_of(network, image_size, kernels)
    if estimate:
        ranks = {name: layer.estimated(weaken) for name, layer in layers.items() if not layer.reason}
    elif fraction:
        ranks = {name: layer.at(fraction) for name, layer in layers.items() if not layer.reason}
    else:
        what, limit = next((what, limit) for what, limit in budgets.items() if limit)
        ranks = within(network, image_size, layers, what, limit)
    reasons = {name: layer.reason or layer.no_saving(ranks[name]) for name, layer in layers.items()}
    return Choice(
        {name: ranks[name] for name, reason in reasons.items() if not reason}, {n: why for n, why in reasons.items() if why}
    )
