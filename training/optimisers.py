"""This file holds the optimisers that --optimizer can name.

Each takes groups of parameters, the training section of the settings, and whether the device has `fused` kernels.
"""

from typing import Annotated

import torch


def sgd(groups: list[dict], training, fused: bool, *, nesterov: bool = False) -> torch.optim.Optimizer:
    """Stochastic gradient descent with --momentum; nesterov=True looks ahead (Sutskever et al., 2013)."""
    options = {"momentum": training.momentum, "weight_decay": training.weight_decay, "nesterov": nesterov, "fused": fused}
    return torch.optim.SGD(groups, training.lr, **options)


def adam(
    groups: list[dict],
    training,
    fused: bool,
    *,
    beta1: Annotated[float, "below 1"] = 0.9,
    beta2: Annotated[float, "below 1"] = 0.999,
    eps: float = 1e-8,
) -> Annotated[torch.optim.Optimizer, "no momentum"]:
    """Adam (Kingma and Ba, 2015, arXiv 1412.6980); --weight_decay is added to the gradient."""
    options = {"betas": (beta1, beta2), "eps": eps, "weight_decay": training.weight_decay, "fused": fused}
    return torch.optim.Adam(groups, training.lr, **options)


def adamw(
    groups: list[dict],
    training,
    fused: bool,
    *,
    beta1: Annotated[float, "below 1"] = 0.9,
    beta2: Annotated[float, "below 1"] = 0.999,
    eps: float = 1e-8,
) -> Annotated[torch.optim.Optimizer, "no momentum"]:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019, arXiv 1711.05101)."""
    options = {"betas": (beta1, beta2), "eps": eps, "weight_decay": training.weight_decay, "fused": fused}
    return torch.optim.AdamW(groups, training.lr, **options)
