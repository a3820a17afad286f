"""This file keeps the weights of the epoch that was the best on the held-out images, for --keep_best."""

import torch
from torch import Tensor

from models import Network
from models.shapes import TENSOR, check_values
from settings.schema import COUNT, FINITE, DictOf, Record, check

SAVED = Record({"epoch": COUNT, "value": FINITE, "model": DictOf(TENSOR, 1)})


class Best:
    """The weights, statistics and masks after the best `epoch` so far, whose metric on the held-out images was `value`."""

    def __init__(self, epoch: int, value: float, tensors: dict[str, Tensor]):
        self.epoch, self.value, self.tensors = epoch, value, tensors

    @classmethod
    def of(cls, network: Network, epoch: int, value: float) -> "Best":
        """A copy of what a network holds now."""
        return cls(epoch, value, {name: tensor.clone() for name, tensor in network.state_dict().items()})

    @torch.no_grad()
    def put(self, network: Network) -> None:
        """Write the weights into the network."""
        own = network.state_dict()
        for name, value in self.tensors.items():
            own[name].copy_(value)

    def plain(self) -> dict:
        """What a checkpoint keeps of it, as tensors and plain values."""
        return {"epoch": self.epoch, "value": self.value, "model": self.tensors}

    @classmethod
    def from_plain(cls, saved, network: Network) -> "Best":
        """What a checkpoint keeps. Unfit, a ValueError, where it is of another network."""
        check(saved, SAVED, "best")
        own = network.state_dict()
        check_values(own, saved["model"], "best.model")
        return cls(saved["epoch"], saved["value"], {name: saved["model"][name].to(value.device) for name, value in own.items()})


def may_be_kept(run, epoch: int) -> bool:
    """Return whether the weights after an epoch of a run may be those that it ends with.

    The epoch must be of the last stage that trains, and masks must not change after it.
    """
    plan, pruner = run.plan, run.pruner
    first = plan.first_epoch(plan.last_trained)
    if epoch < first or run.stage < plan.last_trained:
        return False
    if pruner is None or run.now.masks_stay or not run.now.epochs:
        return True
    done = (epoch - first + 1) * pruner.steps
    remade = pruner.mask.soft and done + pruner.steps <= pruner.moves_until  # behind the next epoch
    return pruner.positions[len(pruner.positions) - 1] < done and not remade


def consider(run, epoch: int, value: float) -> None:
    """Keep the weights after this epoch, whose metric on the held-out images is `value`, if --keep_best asks for them."""
    better = run.best is None or value > run.best.value
    if run.settings.training.keep_best and better and may_be_kept(run, epoch):
        run.best = Best.of(run.model, epoch, value)


def end_stage(run, rows: list[dict]) -> None:
    """Put the weights in force that a stage ends with: the average, or those of the best epoch in the last that trains."""
    if run.average is not None:
        run.average.put()
        run.average = None
    if run.best is not None and run.stage == run.plan.last_trained:
        run.best.put(run.model)
        kept = {"epoch": run.best.epoch, "valid": run.best.value, "last": rows[-1]["valid"][run.task.metric]}
        run.results, run.best = run.results | {"kept": kept}, None
