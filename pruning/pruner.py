"""This file joins the four answers: what is cut, by what measure, compared with whom, and when."""

import inspect
import re
from collections.abc import Callable, Collection, Iterable
from functools import partial

import torch
from torch import Tensor

from models import Network
from models.numerics import without_tf32
from pruning.budget import Budget, round_up
from pruning.channels import put_in_one
from pruning.context import Context, lift
from pruning.gated import Gated
from pruning.gates.mask import Mask
from pruning.groups import Decisions, check_comparable
from pruning.times import Due, Mapped, numbers
from settings.registry import CRITERIA, GATES, GRANULARITIES, PHASES, SCHEDULES, SCOPES
from tasks.classification import Classification


class Pruner(Gated):
    """A pruner puts a mask on every unit of its `granularity`, and moves the masks as the phase says.

    `rate` is the fraction removed: of the filters, or of groups of them with `residual="grouped"`; with a `budget`, "macs"
    or "parameters", it is the fraction of these that removal takes away, on images of `image_size`. `round_to` keeps a
    multiple of filters in each layer. With `only` these units alone get a mask, and those in `whole` get none. `gate` says where
    a filter mask acts, `frequency` is such as "1ep" or "4it", `until` a fraction of the run. `begin` tells how long the run is.
    ValueError for a network that granularity or criterion refuse, for a budget of smaller pieces, or if a floor forbids so much.
    """

    def __init__(
        self,
        network: Network,
        *,
        prune_type: str = "structured",
        criterion: str = "L1",
        scope: str = "global",
        phase: str = "dynamic",
        schedule: str = "constant",
        rate: float,
        gate: str = "output",
        frequency: str = "1ep",
        until: float = 0.75,
        seed: int = 0,
        residual: str = "free",
        budget: str | None = None,
        round_to: int = 1,
        image_size: int = 32,
        only: Collection[str] | None = None,
        whole: Collection[str] = (),
    ):
        self.network, self.rate, self.until, self.seed = network, rate, until, seed
        self.sample, self.task = None, Classification
        self.granularity = GRANULARITIES.get(prune_type)
        self.criterion, self.scope = lift(CRITERIA.get(criterion)), SCOPES.get(scope)
        self.phase, self.schedule = PHASES.get(phase), SCHEDULES.get(schedule)
        self.only_more = "what is cut stays cut" in PHASES.entry(phase).traits
        scored_by = CRITERIA.entry(criterion)
        self.needs_images = scored_by.name if "more images than filters" in scored_by.traits else None
        number, word = re.fullmatch(r"(\d+)(ep|it)", frequency).groups()
        self.every, self.by_epochs = int(number), word == "ep"
        check_comparable(network, criterion, whole)
        masked, self.whole = self.granularity.units(network), whole
        self.units = {name: unit for name, unit in masked.items() if name not in whole and (only is None or name in only)}
        if not self.units:
            raise ValueError(f"this network has nothing that --prune_type {prune_type} could cut")
        removable = self.granularity.removable
        if budget is not None and not removable:
            raise ValueError(f"no filter goes as a whole with {prune_type}, and so the {budget} stay as they are")
        compares = "unlike filters" in scored_by.traits
        self.decisions = Decisions(network, list(self.units), residual if removable else "pieces", tied_too=not compares)
        make_gate = GATES.get(gate)
        self.gates = {name: self.granularity.gate(unit, make_gate) for name, unit in self.units.items()}
        for name, mask in self.gates.items():
            self.units[name].gate = mask
            if "initial weights" in scored_by.traits:
                mask.keep_initial(self.units[name].weight)
        put_in_one(network, self.gates if removable else {})
        self.changes = torch.zeros((), dtype=torch.int64, device=next(network.parameters()).device)
        self.returns = torch.zeros_like(self.changes)
        if residual == "grouped" and removable and not self.decisions.joins:
            raise ValueError("no two layers that may be cut write one channel, so that grouping changes nothing")
        self.round_to, self.budget = round_to, None if budget is None else Budget(network, budget, image_size)
        smallest = self._choose({name: mask.mask for name, mask in self.gates.items()}, rate)
        how = f", in multiples of {round_to}" if round_to > 1 else ""
        if self.budget is not None and (least := self.budget.fraction_left(smallest)) > 1 - rate:
            raise ValueError(f"{1 - rate:g} of the {budget} is less than the least that can be left, about {least:.4f}{how}")

    def begin(
        self, epochs: int, steps: int, sample: Callable[[], Iterable], task=Classification, most_rounds: int | None = None
    ) -> None:
        """Learn how long the run is: so many epochs of so many steps. `sample` yields the batches to score with.

        A batch is a pair of images and labels; `task` says what their loss is. `most_rounds` limits the rounds before one step,
        for a run that only shows what would be done. ValueError if no mask would ever be made.
        """
        self.look_at(sample, task)
        self.steps, self.total = steps, epochs * steps
        until = max(int(self.until * self.total + 1e-6), 1 if self.until > 0 else 0)
        self.positions, self.moves_until = self.phase(until, Due(epochs, steps, self.every, self.by_epochs))
        if len(self.positions) == 0 or self.positions[0] >= self.total:
            raise ValueError(f"no mask would ever be made in {epochs} epochs of {steps} steps")
        if len(self.positions) > 1 and self.positions[0] == self.positions[-1]:
            # rounds that are all before one step: their progress is their number
            self.positions = self.positions[:most_rounds]
            self.updates = Mapped(range(len(self.positions)), lambda number: (number + 1) / len(self.positions))
        else:
            self.updates = Mapped(self.positions, lambda position: position / self.total)
        self.let_move(self.moves_until > 0)

    def look_at(self, sample: Callable[[], Iterable], task) -> None:
        """Say what criteria measure on: `sample` yields the batches, and `task` says what their loss is."""
        self.sample, self.task = sample, task

    def check_sample(self, images: int) -> None:
        """Raise ValueError if so many images to score with are too few for the criterion."""
        widest = max(unit.filters for unit in self.units.values())
        if self.needs_images and images <= widest:
            raise ValueError(f"{self.needs_images} needs more images than a layer has filters, {widest}; there are {images}")

    def let_move(self, moving: bool) -> None:
        """Tell every mask, and the joints, whether masks still move: then the gradient is straight-through."""
        for mask in self.gates.values():
            mask.straight_through = moving
        for joint in self.network.joints.values():
            joint.from_the_right = moving and self.mask.joint == "right"

    @property
    def mask(self) -> Mask:
        """One of the masks, which all are of one kind."""
        return next(iter(self.gates.values()))

    @property
    def shared(self) -> bool:
        return self.granularity.removable and len(self.decisions) < self.entries

    def before_step(self, epoch: int, step: int) -> bool:
        """Change the masks, fix them, or leave them, as is due before this training step. Says whether they were made anew."""
        position = epoch * self.steps + step
        rounds = numbers(self.positions, position)
        # before scoring: a gradient criterion sees what cut filters would learn
        self.let_move(position < self.moves_until)
        for number in rounds:
            self.update(self.rate_due(self.updates[number]))
        return len(rounds) > 0

    def has_begun(self, epoch: int, step: int) -> bool:
        """Say whether masks are made before this training step for the first time, or have been made before."""
        return epoch * self.steps + step >= self.positions[0]

    def rate_due(self, progress: float) -> float:
        """Return the fraction that the schedule cuts at an update of this progress."""
        rate = {"rate": self.rate} if "rate" in inspect.signature(self.schedule).parameters else {}
        return self.rate * self.schedule(progress, self.updates, **rate)

    def after_epoch(self, epoch: int) -> bool:
        """Make soft masks anew behind the last step of an epoch in which they move. Says whether they were made anew."""
        done = (epoch + 1) * self.steps
        if not self.mask.soft or done > self.moves_until:
            return False
        self.update(self.rate_due(done / self.total))
        return True

    def overwrite(self) -> None:
        """Let new masks change the weights themselves, where they do."""
        for name, mask in self.gates.items():
            mask.overwrite(self.units[name])

    def scores(self, rate: float | None = None) -> dict[str, Tensor]:
        """Return the criterion's scores, in the masks' shapes; bools, True where kept, if the criterion finds its own counts.

        `rate` is the fraction that is due, for criteria that try it out. The network is left as it was; `record` then holds
        what the criterion has recorded.
        """
        choose = partial(self._choose, rate=self.rate if rate is None else rate)
        context = Context(
            self.network, self.granularity.groups, self.sample, self.seed, choose, self.task, self.mask.scored == "own"
        )
        with without_tf32():
            scores = self.criterion(self.units, context)
        self.record = context.record
        return scores

    def update(self, rate: float) -> None:
        """Make new masks that cut this fraction; `changes` grows by the entries that moved, `returns` by those that came back."""
        for name, keep in self.choice(rate).items():
            keep = keep.to(self.changes.device)
            moved = self.gates[name].decide() != keep
            self.changes += moved.sum()
            self.returns += (moved & keep).sum()
            self.gates[name].set(keep)

    def choice(self, rate: float) -> dict[str, Tensor]:
        """Return what the masks would keep that cut this fraction now, {unit: bool tensor in its mask's shape}."""
        return self._choose(self.scores(rate), rate)

    def _choose(self, scores: dict[str, Tensor], rate: float) -> dict[str, Tensor]:
        """Return what to keep of every unit, {unit: bool tensor in its mask's shape}, where this fraction goes."""
        decided = next(iter(scores.values())).dtype == torch.bool
        if self.only_more:
            cut = {name: ~gate.decide() for name, gate in self.gates.items()}
            scores = {name: score.double().masked_fill(cut[name], -torch.inf) for name, score in scores.items()}
        if self.budget is not None:  # the search takes many small steps, which the CPU does faster
            scores = {name: score.cpu() for name, score in scores.items()}
        merged = self.decisions.merge(scores)

        def choose(rate: float) -> dict[str, Tensor]:
            keep = {name: score > 0 for name, score in merged.items()} if decided else self.compare(merged, rate)
            return round_up(merged, keep, self.decisions.multiples(self.round_to)) if self.round_to > 1 else keep

        def spread(keep: dict[str, Tensor]) -> dict[str, Tensor]:
            return self.decisions.spread(keep, scores)

        total = sum(score.numel() for score in merged.values())
        if self.budget is None:
            keep = spread(choose(rate))
        else:
            keep = spread(self.budget.search(lambda k: choose(k / total), spread, total, 1 - rate))
        if self.only_more:
            keep = {name: mask & ~cut[name].to(mask.device) for name, mask in keep.items()}
        return keep

    def compare(self, scores: dict[str, Tensor], rate: float) -> dict[str, Tensor]:
        """Return what the scope keeps of some layers, {layer: bool tensor}, where this fraction of their scores goes."""

        def kept_now() -> dict[str, Tensor]:
            kept = self.decisions.gather({name: gate.decide() for name, gate in self.gates.items()})
            return {name: mask.to(scores[name].device) for name, mask in kept.items() if name in scores}

        def weights_now() -> dict[str, Tensor]:
            return {layer: self.units[layer].weight.detach().to(score.device) for layer, score in scores.items()}

        linear, asked = {name for name, unit in self.units.items() if unit.is_linear}, inspect.signature(self.scope).parameters
        known = (("kept", kept_now), ("weights", weights_now), ("linear", linear), ("whole", self.whole))
        return self.scope(scores, rate, **{name: value for name, value in known if name in asked})

    def take_moves(self) -> dict[str, int]:
        """Return what moved since this was last called, as plain values for metrics.jsonl.

        `mask_changes` is the number of mask entries that moved; `returned` those that came back, `left` those that were cut;
        `not_learning` are entries that are cut now and whose weights had a gradient of exactly 0 in the last step.
        """
        changes, returned = int(self.changes), int(self.returns)
        for counted in (self.changes, self.returns):
            counted.zero_()
        moves = {"mask_changes": changes, "returned": returned, "left": changes - returned}
        return moves | {"not_learning": self.not_learning()}
