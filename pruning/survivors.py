"""This file cuts a network in one or more steps, in each of which the weights that survive get new values.

What values is for a method in reconstruction/ to say. Layers that read what was cut are repaired in `repair.py` instead.
"""

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pruning.context import Context
from pruning.pruner import Pruner


class Survivors:
    """Survivors are what a method is asked about that gives new values to what a cut leaves of each layer.

    `units` are those of the pruner, whose masks are on the network. The method calls `choice` and then `put`, once or more
    often, until the whole rate is cut. `sample(images)` yields batches of at least so many training images.
    """

    def __init__(self, pruner: Pruner, sample: Callable[[int], Iterator], tell: Callable[[dict], None] = lambda record: None):
        self.pruner, self.sample, self.tell, self.units = pruner, sample, tell, pruner.units
        self.records: list[dict] = []
        self.began = time.perf_counter()
        pruner.only_more = True  # from one step to the next

    def context(self, images: int) -> Context:
        """Return what can be asked of the network as it is now, on at least so many images."""
        pruner = self.pruner
        return Context(pruner.network, pruner.granularity.groups, lambda: self.sample(images), pruner.seed, task=pruner.task)

    def choice(self, part: float) -> dict[str, Tensor]:
        """Return what stays once a `part` of the cut is done, {unit: bool tensor of its weight's shape}.

        Each equal part keeps the same fraction of what the one before has left. The criterion measures the network as it is.
        """
        rate = self.pruner.rate
        self.keep = self.pruner.choice(rate if part == 1 else 1 - (1 - rate) ** part)
        return {name: _widened(mask, self.units[name].weight) for name, mask in self.keep.items()}

    @torch.no_grad()
    def put(self, weights: dict[str, Tensor], context: Context, predicted: float) -> None:
        """Put the masks of the last choice in force, and these weights. `predicted` is how much the method lets the loss rise.

        It is recorded as plain values, beside the loss of the context's images before and after it.
        """
        before, _ = context.measure()
        for name, unit in self.units.items():
            unit.gate.set(self.keep[name].to(unit.gate.mask.device))
            unit.weight.copy_(weights[name])
        after, _ = context.measure()
        seconds, self.began = time.perf_counter() - self.began, time.perf_counter()
        record = {"step": len(self.records) + 1, "cut": self.pruner.cut(), "of": self.pruner.entries, "images": context.images}
        record |= {"loss_before": before, "loss": after, "predicted": predicted, "seconds": round(seconds, 2)}
        self.records.append(record)
        self.tell(record)


def _widened(mask: Tensor, weight: Tensor) -> Tensor:
    """Return a mask over pieces of a weight as one over its single weights, on its device."""
    return mask.to(weight.device).view(*mask.shape, *[1] * (weight.dim() - mask.dim())).expand_as(weight)
