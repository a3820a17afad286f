"""Optimisers."""

import torch

import models


def build_optimizer(model: models.Network, settings) -> torch.optim.Optimizer:
    options = {"momentum": settings.momentum, "weight_decay": settings.weight_decay, "fused": settings.device != "mps"}
    return torch.optim.SGD(model.parameters(), settings.lr, **options)
