"""This file knows the networks of a run, one after the other, where students have other networks than their teacher."""

from dataclasses import dataclass, field

import torch

import models
from pruning import Learner, Pruner, accounting
from settings.arguments import Settings
from settings.errors import Refused
from settings.meaning import students_of, zero_filters
from settings.own_files import own_file
from settings.registry import parse_call
from training.build import build_network, build_pruner
from training.stages import Plan
from training.teacher import Teaching


@dataclass
class Last:
    """What is known of the network that a run ends with, while another one is trained.

    `filters` are those of each layer, `prunable` the entries of all masks. `pruning` is what a row of an epoch tells of it:
    nothing has been cut of it yet.
    """

    filters: dict[str, int]
    prunable: int = 0
    pruning: dict = field(default_factory=dict)


class Networks:
    """The networks of a run: `arch` is the name of the present one.

    `programs` holds, by name, what networks in files of the user's are rebuilt of, without executing those files again.
    """

    def __init__(self, settings: Settings, plan: Plan, state: dict | None):
        self.settings, self.plan = settings, plan
        self.arch = self.named(state["stage"] if state else 0)
        self.programs = dict((state or {}).get("programs", {}))
        self._last: Last | None = None

    def named(self, stage: int) -> str:
        """The name of the network in the stage of this number."""
        actions = [parse_call(action) for before in self.plan.stages[: stage + 1] for action in before.enter]
        students = [options["student"] for name, options in actions if name == "pseudo_label" and "student" in options]
        return students[-1] if students else self.settings.network.arch

    @property
    def final(self) -> str:
        """The name of the network that the run ends with: the one that is pruned, and made smaller."""
        return self.named(len(self.plan.stages))

    @property
    def last(self) -> Last | None:
        """What is known of the network that the run ends with, while another one is trained; None with that network itself."""
        return self._last if self.arch != self.final else None

    def build(self, *weights, arch: str | None = None) -> tuple[models.Network, accounting.Count]:
        """Build the present network, or one of another name, as `build_network` does; what ends the run is for the last one."""
        arch = arch or self.arch
        asked = self.settings.replace(arch=arch)
        if arch != self.final:
            asked = asked.replace(factorise=None, recalibrate=0)
        return build_network(asked, *(weights or (None, self.programs.get(arch))))

    def look_ahead(self, teaching: Teaching | None, device: str) -> Pruner | Learner | None:
        """Build the networks that follow, so that what they refuse is refused now; return the pruner of the last one.

        The random state is afterwards as it was. None where the present network is the last one, or nothing is pruned.
        """
        pruner, coming = None, {*students_of(self.settings)} - {self.arch}
        for arch in sorted(coming):
            try:
                with torch.random.fork_rng(devices=[]):
                    network, whole = self.build(arch=arch)
                    if own_file(arch):
                        self.programs[arch] = network.shapes()
                    if arch == self.final:
                        pruner = build_pruner(network, self.settings)
                        self._last = _known(network, whole, pruner, self.settings)
                    if teaching is not None:
                        teaching.check(network.to(device))
            except (Refused, ValueError) as error:
                procedure, words = parse_call(self.settings.run.procedure)[0], str(error).removeprefix(f"--arch {arch}: ")
                raise Refused(f"--procedure {procedure}, student {arch}: {words}") from None
        return pruner


def _known(network: models.Network, whole: accounting.Count, pruner: Pruner | Learner | None, settings: Settings) -> Last:
    """Return what is known of a network that was just built, with the masks of a pruner if it has one."""
    last = Last({name: unit.filters for name, unit in network.units.items()}, pruner.entries if pruner else 0)
    if pruner is not None or zero_filters(settings):
        total = whole.parameters if pruner is None else accounting.zeros(network)[1]
        moved = ("mask_changes", "returned", "left", "not_learning")
        last.pruning = {"num_zero": 0, "num_total": total, "cut": 0, "kept_filters": accounting.kept_filters(network)}
        last.pruning |= dict.fromkeys(moved, 0)
    return last
