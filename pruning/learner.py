"""This file lets gates that learn decide what is cut: there is no criterion, no scope and no rate."""

from collections.abc import Callable, Collection, Iterable

import torch
from torch import Tensor

from models import Network
from pruning.channels import cannot_be_cut, in_groups
from pruning.gated import Gated
from settings.registry import GATES, GRANULARITIES, parse_call
from tasks.classification import Classification


class Learner(Gated):
    """A learner puts a gate that learns on each unit but those in `whole`, and tells it before each step how far the run is.

    `gate` is its name with options; one at what a unit reads is not on the readers of `whole` either. A run treats it as it does
    a `Pruner`. ValueError for options that the gate refuses, and for a network whose filters cannot be cut one by one.
    """

    def __init__(self, network: Network, *, prune_type: str, gate: str, whole: Collection[str] = ()):
        self.network, self.granularity = network, GRANULARITIES.get(prune_type)
        self.units = self.granularity.units(network)
        if self.granularity.removable and (tied := [link.unit for link in network.links if link.ties]):
            raise ValueError(f"'{tied[0]}' ties its filters to its channels, of which each would have another gate")
        if self.granularity.removable and (grouped := in_groups(network)):
            name = grouped[0].unit
            raise ValueError(f"{cannot_be_cut(name, network.get_submodule(name))}, and each filter would have another gate")
        if parse_call(gate)[1].get("on") == "inputs":
            self.units = network.all_units  # linear layers have inputs too
            whole = network.with_readers([*whole])  # a filter that no layer reads is removed
        self.units = {name: unit for name, unit in self.units.items() if name not in whole}
        if not self.units:
            raise ValueError(f"this network has nothing that --prune_type {prune_type} could cut")
        make = GATES.get(gate)
        self.gates = {name: make(unit) for name, unit in self.units.items()}
        for name, unit in self.units.items():
            unit.gate = self.gates[name]
        self._remember()

    def begin(self, epochs: int, steps: int, sample: Callable[[], Iterable], task=Classification, most_rounds=None) -> None:
        """Learn how many steps an epoch has, and by `task` how many images a step; the rest is what a `Pruner` is told."""
        self.steps, self.images = steps, steps * task.batch
        self._remember()

    def before_step(self, epoch: int, step: int) -> bool:
        """Make the gates ready for a training step. Says that no masks were made, which the processes would have to share."""
        for gate in self.gates.values():
            gate.before_step(epoch + step / self.steps, self.images)
        return False

    def pieces(self, name: str, weight: Tensor) -> Tensor:
        return self.gates[name].pieces(weight)

    def _remember(self) -> None:
        self.decided = {name: gate.decide() for name, gate in self.gates.items()}

    @property
    def changes(self) -> Tensor:
        """How many pieces are decided otherwise than at the end of the last epoch."""
        return torch.stack([(gate.decide() != self.decided[name]).sum() for name, gate in self.gates.items()]).sum()

    def take_moves(self) -> dict[str, int]:
        """Return what moved since the last epoch, as `Pruner.take_moves` does."""
        returned = sum(int((gate.decide() & ~self.decided[name]).sum()) for name, gate in self.gates.items())
        changes = int(self.changes)
        self._remember()
        moves = {"mask_changes": changes, "returned": returned, "left": changes - returned}
        return moves | {"not_learning": self.not_learning()}
