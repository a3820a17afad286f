"""This file measures batch norm's statistics anew, since pruning changes what batch norm sees."""

from collections.abc import Iterable

import torch

from models.network import Network


@torch.no_grad()
def recalibrate_statistics(network: Network, batches: Iterable, autocast) -> None:
    """Set batch norm's running statistics to the plain mean of the batches' own; a batch is (inputs, targets).

    `autocast` makes a context in which a forward pass has the run's precision.
    """
    norms = [unit.norm for unit in network.all_units.values() if unit.norm is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch then takes the mean over all batches
    network.train_without_dropout()
    for unit in network.all_units.values():
        if unit.gate is not None:
            unit.gate.eval()  # the statistics are for evaluation, in which gates that learn do not draw
    for inputs, _ in batches:
        with autocast():
            network(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
