"""This file builds what is minimised beside the task's loss: penalties, proximal steps, and what gates add."""

from collections.abc import Callable

import torch

import models
from models.layers import Gate
from pruning.gates.scale import put_scales
from settings.errors import Refused
from settings.registry import REGULARIZERS, parse_call


def build_regulariser(reg: str, training) -> tuple[dict[str, Callable], Callable | None]:
    """Build the regulariser `reg` of a stage: penalties on the network by name, and a proximal step or None.

    What --reg names is weighted by --odecay; `training` is that section of the settings.
    """
    if reg == "none":
        return {}, None
    function = REGULARIZERS.get(reg, **({"weight": training.odecay} if reg == training.reg else {}))
    if REGULARIZERS.entry(reg).kind == "proximal":
        return {}, function
    return {function.__name__: function}, None


def check_regulariser(network: models.Network, reg: str) -> None:
    """Try --reg on a network that was just built, whose weights it does not move; scales that it trains are put there.

    Raises Refused for a network without what it is about.
    """
    entry = REGULARIZERS.entries.get(parse_call(reg)[0])
    norms = [unit.norm for unit in network.prunable_convolutions.values() if unit.norm is not None]
    if entry is not None and "batch norm" in entry.traits and not norms:
        raise Refused(f"--reg {reg} has no effect: it is about batch norm, and no convolution of this network has one")
    if entry is None or "zero filters" not in entry.traits:
        return
    try:
        if "learned scales" in entry.traits:
            put_scales(network, REGULARIZERS.get(reg).keywords.get("of", entry.options["of"].default))
        else:
            REGULARIZERS.get(reg, weight=0.0)(network, 0.0)
    except ValueError as error:
        raise Refused(f"--reg {reg}: {error}") from None


def gate_penalties(network: models.Network) -> dict[str, Callable]:
    """Build the terms of the loss that gates add, each the sum of the penalties of those that name it as their `term`."""
    gates = [unit.gate for unit in network.all_units.values() if unit.gate is not None]
    by_term: dict[str, list[Gate]] = {}
    for gate in gates:
        if type(gate).penalty is not Gate.penalty:
            by_term.setdefault(gate.term, []).append(gate)
    return {
        term: lambda _, penalised=penalised: torch.stack([gate.penalty() for gate in penalised]).sum()
        for term, penalised in by_term.items()
    }
