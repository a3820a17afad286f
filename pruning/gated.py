"""This file says what a network whose gates decide what is cut can be asked, whoever decides."""

import torch
from torch import Tensor

from models import Network, Unit
from models.layers import Gate


class Gated:
    """The gates of a network's `units`, by their paths. `granularity` says what is one piece."""

    network: Network
    granularity: type
    units: dict[str, Unit]
    gates: dict[str, Gate]

    @property
    def shared(self) -> bool:
        """Whether filters are decided about together, so that there are fewer decisions than filters."""
        return False

    def pieces(self, name: str, weight: Tensor) -> Tensor:
        """Return a tensor like this unit's weight as (pieces..., weights of a piece)."""
        return self.granularity.groups(weight)

    def check_sample(self, images: int) -> None:
        """Raise ValueError if so many images to score with are too few."""

    def after_epoch(self, epoch: int) -> bool:
        """Change masks behind the last step of an epoch, where that is due. Says whether they were made anew."""
        return False

    def overwrite(self) -> None:
        """Let new masks change the weights themselves, where they do."""

    def cut(self) -> int:
        """Return how many mask entries are 0 now: filters, single weights or kernels."""
        return sum(int((~gate.decide()).sum()) for gate in self.gates.values())

    @property
    def entries(self) -> int:
        """How many mask entries there are: filters, single weights or kernels that could be cut."""
        return sum(gate.decide().numel() for gate in self.gates.values())

    @torch.no_grad()
    def not_learning(self) -> int:
        """Return how many mask entries are cut and had a gradient of exactly 0 in the last step. 0 before the first step."""
        silent = torch.zeros((), dtype=torch.int64, device=next(self.network.parameters()).device)
        for name, unit in self.units.items():
            if unit.weight.grad is not None:
                gradients = self.pieces(name, unit.weight.grad)
                silent += ((gradients == 0).all(-1) & ~self.gates[name].decide()).sum()
        return int(silent)
