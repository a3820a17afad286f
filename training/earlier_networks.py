"""This file reads what earlier runs have left of a network: a smaller one to train anew, and what pruned ones look like."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

import models
import tasks
from models.layers import Gate
from pruning import accounting, guided
from pruning.gates.scale import Scale
from runs.checkpoints import arch_of, load_checkpoint, shapes_of, tensors_of
from settings.arguments import Settings
from settings.errors import Refused
from settings.files import Damaged, Missing
from settings.flags import defaults
from settings.own_files import own_file
from settings.paths import checkpoint_of, model_of
from settings.registry import GATES, GRANULARITIES


@dataclass(frozen=True)
class Known:
    """What is known of the data that a network was trained on.

    They are its numbers of classes and of channels, the pixels of a side, and, where a run says so, the classes' names, the mean
    and the deviation of each channel, and the settings of its training.
    """

    outputs: int
    channels: int
    side: int
    classes: list[str] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    settings: dict = field(default_factory=dict)


def smaller_of(path: str) -> models.Network:
    """Read the smaller network of a model.pt or of a run's folder. Raises Refused for a whole one."""
    network = models.load(model_of(path))
    if network.shapes() == whole_of(network).shapes():
        raise Refused(f"--scratch: '{path}' is a whole {network.card.arch}: no filter has been taken out of it")
    return network


def times_smaller(path: str, settings: Settings) -> float:
    """Return how many times as many MACs the whole network has as the smaller one, at the size of images in the settings."""
    network, size = models.load(model_of(path)), tasks.inputs_of(settings.data)[1]
    return accounting.dense(whole_of(network), size).macs / max(accounting.dense(network, size).macs, 1)


def widths_of(paths: list[str]) -> guided.Fractions:
    """Return the mean fractions of filters kept in each stage of pruned networks: run folders or model.pt files.

    Raises Refused for what is no pruned network, or where the networks have different stages.
    """
    try:
        return guided.mean_of_runs([_fractions(path) for path in paths])
    except ValueError as error:
        raise Refused(f"--widths: {error}") from None


def patterns_of(paths: list[str]) -> guided.Patterns:
    """Return the mean pattern of the kernels of each stage in networks of which single weights or kernels were cut: run folders.

    Raises Refused for what is no such network, or where the networks have different stages.
    """
    try:
        return guided.mean_of_runs([_patterns(path) for path in paths])
    except ValueError as error:
        raise Refused(f"--pattern: {error}") from None


def _fractions(path: str) -> guided.Fractions:
    """Return the fractions of filters kept in each stage of one pruned network."""
    network, whole, known = read_network(path)
    _refuse_factors(network.factors, path)
    kept = accounting.kept_filters(network) if _by_filter(network) else {}
    if all(kept.get(name, unit.filters) == unit.filters for name, unit in whole.units.items()):
        raise ValueError(f"no filter has been cut from '{path}'")
    return guided.fractions(whole, kept, known.side)


def _patterns(path: str) -> guided.Patterns:
    """Return the patterns of the kernels in each stage of one pruned network."""
    network, _, known = read_network(checkpoint_of(path))  # in which masks tell what was cut from a weight that is 0
    _refuse_factors(network.factors, path)
    if _by_filter(network):
        raise ValueError(f"no single weight has been cut from '{path}'")
    return guided.patterns(network.eval(), known.side)


def _by_filter(network: models.Network) -> bool:
    return all(unit.gate is None or unit.gate.by_filter for unit in network.all_units.values())


def read_network(path: str | Path) -> tuple[models.Network, models.Network, Known]:
    """Read the network of a model.pt, a run's folder or a checkpoint: with its gates, as a whole, and what is known of its data.

    Raises Refused where it is none of them.
    """
    file = model_of(path) if model_of(path).is_file() else checkpoint_of(path)
    try:
        state = load_checkpoint(file)
    except Refused as not_a_checkpoint:
        if isinstance(not_a_checkpoint, Missing | Damaged):
            raise
        network = models.load(file)
        card = network.card
        shape = (len(card.classes), network.input_channels, card.image_size)
        return network, whole_of(network), Known(*shape, card.classes, card.mean, card.std, card.training.get("settings", {}))
    shapes = shapes_of(state)
    asked, tensors = defaults() | state["settings"] | {"arch": arch_of(state)}, tensors_of(state)
    options = {"channels": asked["channels"], "size": asked["image_size"]}
    whole = network_named(asked["arch"], shapes, **options)
    data = state.get("data") or {}  # an older run does not say
    output = next(iter(whole.last_units))
    classes = len(tensors.get(f"{output}.layer.weight", data.get("classes") or ()))
    with torch.random.fork_rng(devices=[]):
        network = network_named(asked["arch"], shapes, classes=classes, **options)
        network.reshape(shapes or network.shapes())
        for name, unit in network.all_units.items():
            unit.gate = _gate(unit, asked, tensors, f"{name}.gate.")
    network.take(tensors)
    shape = (classes, asked["channels"], asked["image_size"])
    return network, whole, Known(*shape, *map(data.get, ("classes", "mean", "std")), asked)


def _refuse_factors(factors, path: str) -> None:
    if factors:
        raise ValueError(f"layers of '{path}' have been factorised, so that it has other filters than a whole network")


def _gate(unit: models.Unit, asked: dict, tensors: dict, place: str) -> Gate | None:
    """Return a new gate of the kind that these settings put where a checkpoint has tensors; None where it has none."""
    if not any(name.startswith(place) for name in tensors):
        return None
    if f"{place}scale" in tensors:
        return Scale(unit, len(tensors[f"{place}scale"]))
    make = GATES.get(asked["prune_gate"])
    gate = GRANULARITIES.get(asked["prune_type"]).gate(unit, make) if f"{place}mask" in tensors else make(unit)
    for name in ("initial", "held"):  # what some runs keep beside a mask
        if f"{place}{name}" in tensors:
            gate.register_buffer(name, torch.zeros_like(unit.weight))
    return gate


def network_named(arch: str, shapes: dict | None, **options: int) -> models.Network:
    """Build the whole network that a file names, with fresh weights; one from a user's file is rebuilt of its program alone."""
    return models.rebuild(arch, shapes, **options) if own_file(arch) else models.build(arch, **options)


def whole_of(network: models.Network) -> models.Network:
    """Return the whole network that a smaller one has come from, with fresh weights."""
    card = network.card
    options = {"classes": len(card.classes), "channels": network.input_channels, "size": card.image_size}
    return network_named(card.arch, network.shapes(), **options)
