"""This file reads the network that --init names."""

from pathlib import Path

import torch

import models
from runs.checkpoints import arch_of, load_checkpoint, shapes_of, tensors_of
from settings.arguments import Settings
from settings.errors import Refused
from settings.paths import checkpoint_of, model_of


def starting_weights(settings: Settings) -> tuple[str, dict[str, torch.Tensor], dict, dict | None]:
    """Read the network's name, its tensors, the settings of its run and its shapes from what --init names.

    That is a run's folder, a checkpoint, or a model.pt; of a run whose last checkpoint has masks the model.pt in its folder.
    Raises Refused if it is none of them, if masks are in force, or if it is of another network than the one that was typed.
    """
    network = settings.network
    path, smaller = _file_of(network.init), model_of(network.init)
    try:
        state = load_checkpoint(path)
    except Refused as not_a_checkpoint:
        try:
            arch, tensors, asked_then, shapes = _of_model(path)
        except Refused as not_a_model:
            wanted = not_a_model if "'model'" in str(not_a_checkpoint) else not_a_checkpoint
            raise Refused(f"--init: {wanted}") from None
    else:
        arch, asked_then, shapes = arch_of(state), state["settings"], shapes_of(state)
        found = tensors_of(state)
        tensors = {name: value for name, value in found.items() if ".gate." not in name}
        gates = {name: value for name, value in found.items() if ".gate." in name}
        # what gates that learn have closed, and what they make of the rest, is in no mask and in no scale
        known = (".gate.mask", ".gate.scale")
        if any(not name.endswith(known) or (value != 1).any() for name, value in gates.items()):
            if smaller == path or not smaller.is_file():
                cure = "let the run come to its end, or take filters out by --resume RUN --compact"
                raise Refused(f"--init: '{network.init}' has been pruned; a whole network is needed: {cure}")
            arch, tensors, asked_then, shapes = _of_model(smaller)
    if {"arch", "layers"} & settings.typed.keys() and network.arch != arch:
        raise Refused(f"--init: '{network.init}' is a {arch}, not a {network.arch}")
    return arch, tensors, asked_then, shapes


def _file_of(init: str) -> Path:
    """Return the file that --init names: in a folder the newest checkpoint or, where a model.pt is there alone, that."""
    checkpoint, model = checkpoint_of(init), model_of(init)
    return model if model.is_file() and not checkpoint.exists() else checkpoint


def _of_model(path: Path) -> tuple[str, dict[str, torch.Tensor], dict, dict]:
    """Read the same from a model.pt. Raises Refused as `models.load`."""
    saved = models.load(path)
    return saved.card.arch, saved.state_dict(), saved.card.training.get("settings", {}), saved.shapes()


def meet(task, settings: Settings, network: models.Network) -> None:
    """Compare the classes of what --init names with those of the task, and note weights that are 0 in it.

    Such weights were cut before; no mask holds them now.
    """
    where = f"'{settings.network.init}'"
    task.compare_names(_classes(settings), where)
    weights = [unit.weight for unit in network.all_units.values()]
    zeros, number = sum(int((weight == 0).sum()) for weight in weights), sum(weight.numel() for weight in weights)
    if zeros * 100 > number:
        task.notes.append(f"{zeros} of {number} weights of {where} are 0; they learn again as the others do, unless they are cut")


def _classes(settings: Settings) -> list[str] | None:
    """Return the names of the classes that what --init names was trained on; None where an older run does not say."""
    path = _file_of(settings.network.init)
    try:
        return (load_checkpoint(path).get("data") or {}).get("classes")
    except Refused:
        return models.load(path).card.classes
