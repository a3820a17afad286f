"""This file scales dropout with what single weights have been cut."""

import math

import torch

from models import Network
from pruning.accounting import masked_weights


@torch.no_grad()
def scale_dropout(network: Network) -> None:
    """Set each unit's dropout to D = D_o * sqrt(C / C_o), after its weights were masked (Han et al., 2015, arXiv 1506.02626).

    C of the unit's C_o weights are not under a mask, and D_o is the rate that its dropout was made with: a layer with fewer
    connections overfits less. A run calls it whenever masks were made.
    """
    for unit in network.all_units.values():
        if unit.dropout is not None:
            left = 1 - masked_weights(unit) / unit.weight.numel()
            unit.dropout.rate.fill_(unit.dropout.original * math.sqrt(left))


def dropout_rates(network: Network) -> dict[str, dict[str, float]]:
    """Return the rates of each unit that has dropout: that which it was made with ("original"), and that in force ("rate")."""
    return {
        name: {"original": unit.dropout.original, "rate": round(float(unit.dropout.rate), 6)}
        for name, unit in network.all_units.items()
        if unit.dropout is not None
    }
