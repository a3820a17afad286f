"""This file builds the network, its masks and its optimiser from the settings, and refuses what cannot be built."""

from collections.abc import Sequence

import torch

import models
import tasks
from models.foreign import reshape_but_outputs
from pruning import Learner, Pruner, accounting, guided, repair
from pruning.groups import check_comparable
from settings.arguments import Settings
from settings.errors import Refused
from settings.meaning import gate_that_learns, merges_hidden_layers, misfit, students_of, updates_survivors
from settings.registry import FACTORISATIONS, OPTIMISERS, parse_call
from training.earlier_networks import network_named, patterns_of, widths_of
from training.elsewhere import Elsewhere
from training.keeping import check_kept, units_to_keep
from training.terms import check_regulariser


def build_pruner(model: models.Network, settings: Settings, only: list[str] | None = None) -> Pruner | Learner | None:
    """Build the pruner, which puts its masks or its gates on the network, or on these units; None where nothing is pruned.

    Raises Refused if the network cannot be pruned or repaired as asked, or not by so much.
    """
    pruning = settings.pruning
    if pruning.prune_type == "none":
        return None
    whole = units_to_keep(model, settings)
    if gate_that_learns(settings):
        try:
            return Learner(model, prune_type=pruning.prune_type, gate=pruning.prune_gate, whole=whole)
        except ValueError as error:
            raise Refused(f"--prune_gate {pruning.prune_gate}: {error}") from None
    try:
        check_comparable(model, pruning.prune_imp, whole)
    except ValueError as error:
        raise Refused(f"--prune_imp {pruning.prune_imp}: {error}") from None
    if pruning.reconstruct != "none" and not updates_survivors(settings):
        try:
            repair.check(model, pruning.reconstruct, whole)
            only = [name for layer in repair.layers_for(model, pruning.reconstruct, whole) for name in layer.units]
        except ValueError as error:
            raise Refused(f"--reconstruct {pruning.reconstruct}: {error}") from None
    budgets = {"target_macs": "macs", "target_params": "parameters"}
    amount = next((name for name in budgets if getattr(pruning, name) is not None), "prune_rate")
    # what is refused is the file that a scope reads, if it reads one, or else the amount
    flag = "prune_scope" if parse_call(pruning.prune_scope)[0] in ("preset", "sensitivity") else amount
    try:
        return Pruner(
            model,
            prune_type=pruning.prune_type,
            criterion=pruning.prune_imp,
            scope=pruning.prune_scope,
            phase=pruning.prune_phase,
            schedule=pruning.prune_schedule,
            rate=pruning.prune_rate,
            gate=pruning.prune_gate,
            # a dry run is shorter than most frequencies
            frequency="1ep" if settings.run.dry_run else pruning.prune_freq,
            until=pruning.prune_until,
            seed=settings.run.seed,
            residual=pruning.residual,
            budget=budgets.get(amount),
            round_to=pruning.round_to,
            image_size=tasks.inputs_of(settings.data)[1],
            only=only,
            whole=whole,
        )
    except ValueError as error:
        raise Refused(f"--{flag}: {error}") from None


def check_amounts(batch: int, processes: int, sample: int, pruner: Pruner | None) -> None:
    """Raise Refused if a batch of so many images cannot be shared out, or if `sample` are too few to score with."""
    if batch % processes or batch // processes < 2:
        raise Refused(f"--batch_size: {batch} images are not shared out evenly, two or more each, by {processes} processes")
    if pruner is not None:
        try:
            pruner.check_sample(sample)
        except ValueError as error:
            raise Refused(f"--score_batches: {error}") from None


def build_optimizer(network: models.Network, training, device: str, others: Sequence = ()) -> torch.optim.Optimizer:
    """Build the optimiser that --optimizer names, over the parameters of a network and of its gates, and over `others`.

    `training` is that section of the settings. Raises Refused for options that torch refuses.
    """
    fused = device != "mps"
    try:
        return OPTIMISERS.get(training.optimizer)(parameter_groups(network, others), training, fused)
    except ValueError as error:
        raise Refused(f"--optimizer {training.optimizer}: {error}") from None


def parameter_groups(network: models.Network, others: Sequence = ()) -> list[dict]:
    """Divide a network's parameters into the groups of an optimiser: the weights, `others`, and those of gates that learn.

    Gates have no weight decay, and a group for each `Gate.learning_rate`, which stands in the group as `scale`. What a gate
    has frozen is in no group.
    """
    gates = [unit.gate for unit in network.all_units.values() if unit.gate is not None]
    by_scale: dict[float, list] = {}
    for gate in gates:
        by_scale.setdefault(gate.learning_rate, []).extend(gate.parameters())
    of_gates = {id(parameter) for parameters in by_scale.values() for parameter in parameters}
    weights = [parameter for parameter in network.parameters() if id(parameter) not in of_gates and parameter.requires_grad]
    groups = [{"params": weights}, *([{"params": list(others)}] if others else [])]
    return groups + [
        {"params": parameters, "weight_decay": 0.0, "scale": scale} for scale, parameters in by_scale.items() if parameters
    ]


def build_network(
    settings: Settings, tensors: dict | None, shapes: dict | None = None, elsewhere: Elsewhere | None = None
) -> tuple[models.Network, accounting.Count]:
    """Build a network on the CPU, fresh or with trained `tensors`, and count its filters, parameters and MACs.

    `shapes` are those of a network that is smaller than --arch says; weights from `elsewhere` may be in place of `tensors`.
    Raises Refused if it does not fit the data, or if one of these does not fit it.
    """
    arch, outputs, (channels, size, _) = settings.network.arch, tasks.outputs_of(settings.data), tasks.inputs_of(settings.data)
    if words := misfit(arch, settings.data.dataset, size):
        raise Refused(f"--arch: {words}")
    try:
        model = _built(settings, shapes, classes=outputs, channels=channels, size=size)
    except ValueError as error:
        raise Refused(f"--arch {arch}: {error}") from None
    try:
        if shapes is not None:
            model.reshape(shapes) if elsewhere is None else reshape_but_outputs(model, shapes)
    except ValueError as error:
        raise Refused(f"what the run begins with is of another network than {arch}: {error}") from None
    model.linear_too = merges_hidden_layers(settings)
    regulariser, options = parse_call(settings.training.reg)
    _check_parts(model, settings)
    if regulariser != "none" and not model.prunable_convolutions and not options.get("linear"):
        raise Refused(f"--reg {settings.training.reg} has no effect: it is about filters, and {arch} has none")
    try:
        whole = accounting.dense(model, size)
    except RuntimeError:
        raise Refused(f"images of {size} pixels are too small for {arch}") from None
    if not settings.run.resume:
        _check_guided(model, settings.network, size)
    _check_ending(model, settings, size)
    if tensors is not None or elsewhere is not None:
        try:
            model.take(tensors) if elsewhere is None else elsewhere.give_to(model)
        except ValueError as error:
            init = settings.network.init
            raise Refused(f"--init: '{init}' is of another network than {arch} of {outputs} classes: {error}") from None
    check_regulariser(model, settings.training.reg)
    return model, whole


def _built(settings: Settings, shapes: dict | None, **options: int) -> models.Network:
    """Build the network that --arch names. ValueError where there is none, or where only a file of weights names a user's file.

    A network from a file of the user's is rebuilt of the shapes in a checkpoint or a model.pt, where there is one. The user's
    file is executed only for a run that begins, and where the user has typed it.
    """
    arch = settings.network.arch
    begins = shapes is None and not settings.run.resume and arch in (settings.typed.get("arch"), *students_of(settings))
    return models.build(arch, **options) if begins else network_named(arch, shapes, **options)


def _check_parts(model: models.Network, settings: Settings) -> None:
    """Raise Refused where --procedure or --reg names parts that the network does not have."""
    phases = parse_call(settings.run.procedure)[1].get("phases")
    part = parse_call(settings.training.reg)[1].get("part", (0, 1))
    try:
        if phases:
            model.parts(phases)
        if part != (0, 1):
            model.part(*part)
    except (ValueError, TypeError) as error:
        raise Refused(f"--arch {settings.network.arch}: {error}") from None
    check_kept(model, settings)


def _check_guided(model: models.Network, network, size: int) -> None:
    """Raise Refused for --widths or --pattern that do not fit the network, before the data is read.

    `network` is that section of the settings.
    """
    flag = "widths" if network.widths else "pattern"
    try:
        if network.widths:
            guided.narrowed(model, widths_of(network.widths), size)
        if network.pattern:
            guided.sampled(model, patterns_of(network.pattern), size, 0)
    except ValueError as error:
        raise Refused(f"--{flag}: {error}") from None


def _check_ending(model: models.Network, settings: Settings, size: int) -> None:
    """Raise Refused for what is asked for the end of a run and the network, as it is before training, cannot give.

    That is batch norm for --recalibrate and, where the run is new, a budget of --factorise.
    """
    ending, arch = settings.ending, settings.network.arch
    if ending.recalibrate and all(unit.norm is None for unit in model.all_units.values()):
        raise Refused(f"--recalibrate has no effect: it is about batch norm, and no layer of {arch} has one")
    if not settings.run.resume and ending.factorise and {"macs", "params"} & parse_call(ending.factorise)[1].keys():
        try:
            FACTORISATIONS.get(ending.factorise)(model, size)
        except ValueError as error:
            raise Refused(f"--factorise {ending.factorise}: {error}") from None
