"""This file reads what earlier runs have left of a network: a smaller one to train anew, and the widths of pruned ones."""

from pathlib import Path

import models
import tasks
from pruning import accounting, guided
from runs.checkpoints import load_checkpoint
from settings.arguments import Settings
from settings.errors import Refused
from settings.paths import model_of


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


def _fractions(path: str) -> guided.Fractions:
    """Return the fractions of filters kept in each stage of one pruned network."""
    file = model_of(path)
    if file.is_file() and file.name != "checkpoint.pt":
        smaller = models.load(file)
        whole, size = whole_of(smaller), smaller.card.image_size
        kept = {name: filters for name, (filters, _) in smaller.shapes()["units"].items()}
    else:
        state = load_checkpoint(Path(path) / "checkpoint.pt" if Path(path).is_dir() else Path(path))
        asked = state["settings"]
        size = asked.get("image_size", 32)
        whole = models.build(asked["arch"], channels=asked.get("channels", 3), size=size)
        shapes, masks = state["shapes"] or whole.shapes(), state["model"]
        kept = {name: filters for name, (filters, _) in shapes["units"].items()}
        filter_masks = {name: masks.get(f"{name}.gate.mask") for name in kept}
        kept |= {name: int(mask.sum()) for name, mask in filter_masks.items() if mask is not None and mask.dim() == 1}
    if all(kept[name] == unit.filters for name, unit in whole.units.items()):
        raise ValueError(f"no filter has been cut from '{path}'")
    return guided.fractions(whole, kept, size)


def whole_of(network: models.Network) -> models.Network:
    """Return the whole network that a smaller one has come from, with fresh weights."""
    card = network.card
    return models.build(card.arch, classes=len(card.classes), channels=network.input_channels, size=card.image_size)
