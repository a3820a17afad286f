"""Actions change the network before a stage of training; `Stage.enter` names those of a stage.

An action takes the run and keyword-only options. It trains nothing, and returns plain values for summary.json.
"""

import copy
from collections.abc import Callable
from itertools import chain, count, islice
from typing import Annotated

import torch

import models
from models.layers import initialise
from pruning.collapse import collapse
from pruning.guided import narrowed, sampled
from pruning.removal import Removal, ungated
from pruning.repair import Repair
from pruning.survivors import Survivors
from runs.console import at_chance_line, note, repaired_line, selected_line, updated_line
from settings.errors import Failed
from settings.meaning import updates_survivors
from settings.paths import model_of
from settings.registry import RECONSTRUCTIONS
from training.build import build_pruner
from training.collapsing import tell_collapse
from training.comparison import compare
from training.earlier_networks import patterns_of, widths_of
from training.evaluation import images_at_once
from training.experiment import Experiment
from training.record import shares_left
from training.statistics import recalibrate_statistics
from training.tickets import put_masks


def recalibrate(run: Experiment, *, batches: Annotated[int, "at most 1000000"] = 50) -> dict:
    """Measure batch norm's statistics anew on `batches` training batches. Returns the metric before and after that."""
    task, number = run.task, min(batches, 2) if run.settings.run.dry_run else batches
    split = task.valid or task.test  # where the run is validated
    before = run.evaluate(split)[task.metric]
    # the batches of the epochs that follow: as many epochs as it takes
    epochs = (run.batches(epoch) for epoch in count(run.plan.first_epoch(run.stage)))
    recalibrate_statistics(run.model, islice(chain.from_iterable(epochs), number), run.engine.autocast)
    run.team.average_statistics(run.model)
    return {"recalibration": {"batches": number, "before": before, "after": run.evaluate(split)[task.metric]}}


def remove(run: Experiment) -> dict:
    """Take the pruned filters out of the network, and compare the outputs before and after on the test images.

    The optimiser's momentum is cut like the weights. Raises Failed if outputs differ that should be the same.
    """
    run.stop.check("before removal")
    note(run.settings, "taking the pruned filters out, and comparing the outputs on the test images")
    collapsed = collapse(run.model)
    removal = Removal(run.model)
    smaller = removal.compact().eval()
    batches = 2 if run.settings.run.dry_run else None
    comparison = compare(run.model, smaller, run.task, exact=removal.exact, batches=batches)
    old_optimizer = run.optimizer
    run.go_on_with(smaller)
    removal.carry(old_optimizer, smaller, run.optimizer)
    if run.teaching is not None:
        run.teaching.carry(removal, old_optimizer, run.optimizer)
    return {"removal": comparison, "collapse": collapsed}


def cut_first(run: Experiment) -> dict:
    """Make the masks that are due before the first step of training. Raises Failed if the criterion cannot score."""
    few = 2 if run.settings.run.dry_run else None
    try:
        run.pruner.begin(1, run.steps, run.sample, run.task, few)
        run.move_masks(run.plan.first_epoch(run.stage), 0)
    except ValueError as error:
        raise Failed(f"--prune_imp {run.settings.pruning.prune_imp}: {error}") from None
    return {}


def select(
    run: Experiment,
    *,
    held_out: bool = False,
    part: tuple = (0, 1),
) -> dict:
    """Mask the filters that the criterion chooses by the whole rate; `held_out` shows it the images where the run is validated.

    With part=(1, 4) they are those of the first of four parts of the network. Filters may have been taken out before. Returns
    a record for each selection so far: what the criterion has found, the metric before and after, the filters cut, and the
    fractions of the whole network's parameters and MACs that are left.
    """
    task, pruning, split = run.task, run.settings.pruning, run.task.valid or run.task.test
    if run.pruner is None or part[0]:  # its masks have been taken out, or are on all of the network
        for unit in run.model.all_units.values():
            unit.gate = None
        run.pruner = build_pruner(run.model, run.settings, run.model.part(*part) if part[0] else None)
        run.capture()
    before = run.evaluate(split)[task.metric]
    few = 2 if run.settings.run.dry_run else None
    run.pruner.look_at((lambda: islice(task.ordered(split, images_at_once(task)), few)) if held_out else run.sample, task)
    try:
        run.pruner.update(run.pruner.rate)
    except ValueError as error:
        raise Failed(f"--prune_imp {pruning.prune_imp}: {error}") from None
    run.team.same_([buffer for gate in run.pruner.gates.values() for buffer in gate.buffers()])
    run.collapsed = tell_collapse(run)
    record = {"stage": run.now.name, **run.pruner.record, "before": before, "after": run.evaluate(split)[task.metric]}
    record |= {"cut": run.pruner.cut(), **shares_left(run)}
    note(run.settings, selected_line(record, task.word))
    if record.get("nothing_lost"):
        note(run.settings, at_chance_line(record, task.word))
    return {"selections": [*run.results.get("selections", ()), record]}


@torch.no_grad()
def set_scales(run: Experiment, *, value: float = 0.5) -> dict:
    """Set every scale of batch norm to `value`."""
    for unit in run.model.all_units.values():
        if unit.norm is not None:
            unit.norm.weight.fill_(value)
    return {}


@torch.no_grad()
def reconstruct(run: Experiment, *, layer: str = "", trained: bool = False) -> dict:
    """Cut as --reconstruct and the criterion say, and repair the layers that read what is left, or update what is left itself.

    `layer` names the first unit of a single layer that is cut and repaired; without it all are, in the order of the wiring.
    How many filters go from each layer is decided with the first one, and what is wanted is the network before that. Where it was
    `trained` between layers, what is wanted is the network as it now is: the earlier one's products would undo the training.
    Returns a record for each layer so far, or for each step of an update. The optimiser begins anew.
    """
    task, settings = run.task, run.settings
    run.pruner.look_at(run.sample, task)

    def sample(images: int):
        return task.sample(min(-(-images // task.batch), 2 if settings.run.dry_run else images))

    if updates_survivors(settings):
        survivors = Survivors(run.pruner, sample, lambda record: note(settings, updated_line(record)))
        records = RECONSTRUCTIONS.get(settings.pruning.reconstruct)(survivors)
    else:
        records = _repaired(run, sample, layer, trained)
    run.team.same_([*run.model.parameters(), *run.model.buffers()])
    run.optimizer.state.clear()
    run.collapsed = tell_collapse(run)
    return {"reconstruction": records}


def _repaired(run: Experiment, sample: Callable, layer: str, trained: bool) -> list[dict]:
    """Cut and repair a layer, or all: the records so far."""
    model, pruner, settings = run.model, run.pruner, run.settings
    if not run.to_repair:
        if whole := [name for name in model.units if name not in pruner.units and name not in pruner.whole]:
            note(settings, f"{settings.pruning.reconstruct} leaves whole what writes residual streams: {', '.join(whole)}")
        keep = {name: mask.cpu() for name, mask in pruner.choice(pruner.rate).items()}
        run.to_repair = {"keep": keep, "original": ungated(model).state_dict()}
    original = copy.deepcopy(model) if trained else ungated(model)  # under the masks so far, or before all of them
    if not trained:
        original.load_state_dict(run.to_repair["original"])
    method, size = settings.pruning.reconstruct, run.task.inputs[1]
    repair = Repair(model, original, run.to_repair["keep"], method, sample, seed=settings.run.seed, image_size=size)
    records, last = list(run.results.get("reconstruction", ())), repair.layers[-1]
    for each in repair.layers:
        if layer in ("", each.name):
            run.stop.check(f"before the layer {each.name} was repaired")
            records.append(repair.carry_out(each))
            note(settings, repaired_line(records[-1]))
    if layer in ("", last.name):
        run.to_repair = {}
    return records


def shrink(run: Experiment, *, of: str) -> dict:
    """Give the network the widths of the network in a model.pt, or in a run's folder `of`, and fresh weights."""
    return _begin_anew(run, models.load(model_of(of)).shapes())


def narrow(run: Experiment, *, like: tuple = ()) -> dict:
    """Give the network the mean widths that the pruned networks `like` have in each stage, and fresh weights."""
    return _begin_anew(run, narrowed(run.model.cpu(), widths_of(like), run.task.inputs[1]))


def sparsify(run: Experiment, *, like: tuple = ()) -> dict:
    """Mask single weights at random, by the mean patterns that the kernels of pruned networks `like` have in each stage."""
    put_masks(run.pruner, sampled(run.model, patterns_of(like), run.task.inputs[1], run.settings.run.seed))
    run.collapsed = tell_collapse(run)
    return {}


def _begin_anew(run: Experiment, shapes: dict) -> dict:
    """Give the network these shapes and fresh weights."""
    network = run.model.cpu()  # where fresh weights are the same on every device
    network.reshape(shapes)
    initialise(network)
    run.go_on_with(network.to(run.engine.device, memory_format=torch.channels_last))
    return {}
