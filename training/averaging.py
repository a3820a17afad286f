"""This file averages a network's weights while they are trained, for --ema."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from models import Network
from models.shapes import TENSOR, check_values
from settings.schema import COUNT, DictOf, Record, check

SAVED = Record({"steps": COUNT, "values": DictOf(TENSOR, 1)})


class Average:
    """The exponential moving average of a network's parameters, those of its gates too, and of batch norm's statistics.

    Before the first step it is what the network holds then. After step t, counted from 0, average <- d average + (1 - d)
    value with d = min(decay, (1 + t) / (10 + t)), so that the first values are soon forgotten. Masks are not averaged: those
    in force act on it.
    """

    def __init__(self, network: Network, decay: float):
        self.decay, self.steps = decay, 0
        self.own = _averaged(network)
        self.values = {name: value.detach().clone() for name, value in self.own.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the network's values, behind a step of the optimiser."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        get_ema_multi_avg_fn(decay)([*self.values.values()], [*self.own.values()], None)
        self.steps += 1

    @torch.no_grad()
    def gather(self, team) -> None:
        """Average batch norm's statistics over a team, of which each process has seen its own part of the batches."""
        if team.size > 1:
            for name, value in self.values.items():
                if name.endswith(("running_mean", "running_var")):
                    team.sum_(value.div_(team.size))

    @torch.no_grad()
    def put(self) -> None:
        """Write the average into the network."""
        for name, value in self.own.items():
            value.copy_(self.values[name])

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Within this block the network holds the average; then again what it held."""
        trained = {name: value.detach().clone() for name, value in self.own.items()}
        self.put()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in self.own.items():
                    value.copy_(trained[name])

    def plain(self) -> dict:
        """What a checkpoint keeps of the average, as tensors and plain values."""
        return {"steps": self.steps, "values": self.values}

    @torch.no_grad()
    def take(self, saved) -> None:
        """Go on with what a checkpoint keeps. Unfit, a ValueError, where that is of another network."""
        check(saved, SAVED, "average")
        check_values(self.values, saved["values"], "average.values")
        self.steps = saved["steps"]
        for name, value in self.values.items():
            value.copy_(saved["values"][name])


def averaged(run) -> AbstractContextManager:
    """A block within which a run's network holds the average of its weights, where --ema asks for one."""
    return nullcontext() if run.average is None else run.average.in_force()


def _averaged(network: Network) -> dict[str, Tensor]:
    """Return a network's parameters that have values, and batch norm's statistics, by name."""
    tensors = dict(network.named_parameters()) | {
        name: value for name, value in network.named_buffers() if name.endswith(("running_mean", "running_var"))
    }
    return {name: value for name, value in tensors.items() if value.numel()}
