"""This file keeps what rounds of pruning need again: states of training to rewind to, each round's masks, trained copies."""

import copy
from dataclasses import dataclass, field
from itertools import chain, count, islice, pairwise

import numpy as np
import torch
from torch import Tensor

from models.layers import initialise
from models.shapes import TENSOR, check_values
from pruning import Pruner
from pruning.gates.mask import Mask
from pruning.removal import ungated
from settings.registry import parse_call
from settings.schema import ANYTHING, DictOf, ListOf, Record, Unfit, check
from training.freezing import idle
from training.restoring import take_optimizer
from training.stages import position
from training.statistics import recalibrate_statistics

STATE = Record({"model": DictOf(TENSOR, 1), "optimizer": ANYTHING})
TICKETS = Record(optional={"states": DictOf(STATE), "masks": ListOf(DictOf(TENSOR, 1)), "copies": ListOf(DictOf(TENSOR, 1))})


@dataclass
class Tickets:
    """What a run keeps beside its present state, for as long as it lasts; a checkpoint holds all of it.

    `states` maps a place such as "500it" to weights and optimiser there; `masks` has those of each round, packed, from the
    round of number 1 on; `copies` are weights of networks that were trained from one state.
    """

    states: dict[str, dict] = field(default_factory=dict)
    masks: list[dict[str, Tensor]] = field(default_factory=list)
    copies: list[dict[str, Tensor]] = field(default_factory=list)

    def plain(self) -> dict:
        """All that is kept, as tensors and plain values."""
        return {name: value for name, value in vars(self).items() if value}

    def take(self, saved, run, epochs: int = 0) -> None:
        """Go on with what a checkpoint holds after so many epochs.

        Unfit, a ValueError, where it is not of the run's network, or does not hold what the run's stages have kept by then.
        """
        check(saved, TICKETS, "tickets")
        _check_all_there(saved, run, epochs)
        wanted = weights_of(run.model)
        for place, state in saved.get("states", {}).items():
            check_values(wanted, state["model"], f"tickets.states.{place}.model")
            take_optimizer(copy.deepcopy(run.optimizer), run.settings.training, state["optimizer"], False, idle(run, 0))
        for number, tensors in enumerate(saved.get("copies", ())):
            check_values(wanted, tensors, f"tickets.copies[{number}]")
        for number, masks in enumerate(saved.get("masks", ())):
            _check_masks(masks, run, f"tickets.masks[{number}]")
        vars(self).update(vars(Tickets()) | saved)


def weights_of(network) -> dict[str, Tensor]:
    """A copy of a network's parameters and buffers by name, without its masks; scales that it learns are among them."""
    masks = tuple(f"{name}.gate." for name, unit in network.all_units.items() if isinstance(unit.gate, Mask))
    return {name: value.clone() for name, value in network.state_dict().items() if not name.startswith(masks)}


def state_of(run) -> dict:
    """A copy of the weights and the optimiser of a run as they are now; masks are not among it."""
    return {"model": weights_of(run.model), "optimizer": copy.deepcopy(run.optimizer.state_dict())}


def remember(run, epoch: int, step: int) -> None:
    """Keep the state of a run before this step, if the stage says so, to rewind to it; in a dry run before the first step."""
    done = (epoch - run.plan.first_epoch(run.stage)) * run.steps + step + run.now.skip // run.steps * run.steps
    for place in run.now.remember:
        if done == (0 if run.settings.run.dry_run else position(place, run.steps)):
            run.tickets.states[place] = state_of(run)


@torch.no_grad()
def put_weights(network, tensors: dict[str, Tensor]) -> None:
    """Write a copy of weights into a network; its masks stay as they are."""
    own = network.state_dict()
    for name, value in tensors.items():
        own[name].copy_(value)


def rewind_to(run, place: str) -> None:
    """Bring weights, statistics and optimiser back to what they were at a place that was remembered; masks stay."""
    state = run.tickets.states[place]
    put_weights(run.model, state["model"])
    run.optimizer.state.clear()
    run.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))


def masks_of(run) -> dict[str, Tensor]:
    """The masks in force by unit, packed to a bit an entry."""
    return {name: packed(gate.decide()) for name, gate in run.pruner.gates.items()}


def put_masks(pruner: Pruner, masks: dict[str, Tensor]) -> None:
    """Put masks, {unit: bool tensor}, in force."""
    for name, mask in masks.items():
        pruner.gates[name].set(mask)


def unpacked(run, masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """Masks that `masks_of` has packed, as bool tensors in their gates' shapes, on the CPU."""
    shapes = {name: gate.decide().shape for name, gate in run.pruner.gates.items()}
    return {name: _unpacked(packed, shapes[name]) for name, packed in masks.items()}


def packed(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.flatten().cpu().numpy()))


def _unpacked(packed: Tensor, shape) -> Tensor:
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=shape.numel())).bool().view(shape)


def _check_all_there(saved: dict, run, epochs: int) -> None:
    """Raise Unfit where something is missing of what the stages of a run keep within so many epochs."""
    entered = [parse_call(action)[0] for stage in run.plan.stages[: run.stage + 1] for action in stage.enter]
    loaded = "load_tickets" in entered
    for name, action in (("masks", "cut"), ("copies", "keep_copy")):
        number, least = len(saved.get(name, ())), entered.count(action) + (loaded and name == "masks")
        if number < least or (number > least and not loaded):
            raise Unfit(f"tickets.{name} are {number}, not {least}")
    for number, stage in enumerate(run.plan.stages[: run.stage + 1]):
        steps = (epochs - run.plan.first_epoch(number)) * run.steps
        for place in stage.remember:
            if position(place, run.steps) < steps and place not in saved.get("states", {}):
                raise Unfit(f"tickets.states has no {place}")


def _check_masks(masks: dict, run, where: str) -> None:
    """Raise Unfit unless these are packed masks of the run's units."""
    gates = getattr(run.pruner, "gates", {})
    fits = masks.keys() == gates.keys() and all(isinstance(gate, Mask) for gate in gates.values())
    if not fits:
        raise Unfit(f"{where} is of other units")
    for name, packed in masks.items():
        if packed.dtype != torch.uint8 or packed.shape != (-(-gates[name].decide().numel() // 8),):
            raise Unfit(f"{where}.{name} is no mask of {gates[name].decide().numel()} entries")


def cut_round(pruner: Pruner, number: int, fraction: float, classifier: float) -> None:
    """Cut a fraction of what is left in the round of this number; what is cut stays cut.

    Exactly floor(n (1 - (1 - fraction)^number)) of n pieces are then gone, of the last linear layer's by its own fraction,
    which is `classifier` times the other. ValueError if that would empty a layer.
    """
    pruner.only_more = True
    rate = 1 - (1 - fraction) ** number
    if classifier == 1:
        pruner.update(rate)
        return
    last = [name for name, unit in pruner.units.items() if unit.is_linear][-1]
    gone = {name: ~gate.decide() for name, gate in pruner.gates.items()}
    scores = {name: score.double().masked_fill(gone[name], -torch.inf) for name, score in pruner.scores(rate).items()}
    own = {last: scores.pop(last)}
    put_masks(pruner, pruner.compare(scores, rate) | pruner.compare(own, 1 - (1 - classifier * fraction) ** number))


def between(run, first: dict[str, Tensor], second: dict[str, Tensor], points: int, batches: int) -> dict:
    """Measure the test error at places on the line between two copies, batch norm's statistics measured on `batches` batches.

    With 0 batches the statistics lie on the line too. Returns the places from 0, `first`, to 1, `second`, the errors there and
    half-way in %, and the barrier: the largest of them less the mean of both ends.
    """
    places = [number / (points - 1) for number in range(points)]
    errors = [_error(run, first, second, place, batches) for place in places]
    half = _error(run, first, second, 0.5, batches)
    barrier = max(*errors, half) - (errors[0] + errors[-1]) / 2
    return {"places": places, "errors": errors, "half_way": half, "barrier": barrier}


def _error(run, first: dict[str, Tensor], second: dict[str, Tensor], place: float, batches: int) -> float:
    """The test error, in %, at a place between two copies."""
    run.stop.check("between the copies")
    put_weights(run.model, {name: _mixed(value, second[name], place) for name, value in first.items()})
    if batches:
        epochs = (run.batches(epoch) for epoch in count(run.plan.epochs))
        recalibrate_statistics(run.model, islice(chain.from_iterable(epochs), batches), run.engine.autocast)
        run.team.average_statistics(run.model)
    return 100 - run.evaluate(run.task.test)[run.task.metric]


def _mixed(first: Tensor, second: Tensor, place: float) -> Tensor:
    return first + (second - first) * place if first.is_floating_point() and place not in (0, 1) else (first, second)[place == 1]


def other_masks(kind: str, masks: dict[str, Tensor], pruner: Pruner, chance: torch.Generator, number: int) -> dict[str, Tensor]:
    """The masks of another ticket of this kind, {unit: bool tensor}, given those of the run after the round of this number.

    Each unit has as many pieces left, and what is decided together, such as a group, stays or goes together.
    """
    if kind not in ("random", "shuffle"):
        return masks
    decisions, moved = pruner.decisions, {}
    now = decisions.gather({name: gate.decide().cpu() for name, gate in pruner.gates.items()})
    for layer, mask in decisions.gather(masks).items():
        within = now[layer] if kind == "random" and number > 1 else torch.ones_like(mask)
        # of units that write a stream some are narrower: pieces move among those that the same units write
        ends = sorted({len(masks[name]) // decisions.sizes[name] for name in decisions.layers[layer]})
        moved[layer] = torch.cat([shuffled(mask[i:end], chance, within[i:end]) for i, end in pairwise([0, *ends])])
    return decisions.spread(moved, masks)


def shuffled(mask: Tensor, generator: torch.Generator, within: Tensor) -> Tensor:
    """A mask with as many entries kept, at random among those that `within` keeps."""
    places = within.flatten().nonzero().squeeze(1)
    chosen = places[torch.randperm(len(places), generator=generator)[: int(mask.sum())]]
    moved = torch.zeros(mask.numel(), dtype=torch.bool)
    moved[chosen] = True
    return moved.view_as(mask)


def fresh_weights(run) -> dict[str, Tensor]:
    """New weights for the run's network, drawn from torch's present random state on the CPU."""
    network = ungated(run.model).cpu()
    initialise(network)
    for unit in network.all_units.values():
        if unit.norm is not None:
            unit.norm.reset_parameters()
    return network.state_dict()
