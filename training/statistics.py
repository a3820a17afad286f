"""Batch norm's statistics are measured anew, where pruning has changed what it sees."""

from collections.abc import Iterable

import torch

from models.network import Network


@torch.no_grad()
def recalibrate_statistics(network: Network, batches: Iterable, autocast) -> None:
    """Set batch norm's running statistics to their mean over these batches of (inputs, targets), each with the same weight.

    `autocast` gives the context that puts a forward pass into the run's precision.
    """
    norms = [unit.norm for unit in network.all_units.values() if unit.norm is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    network.train()
    for inputs, _ in batches:
        with autocast():
            network(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
