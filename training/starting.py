"""This file reads the network that --init or --scratch names, with which a run begins."""

from pathlib import Path

import torch

import models
import tasks
from runs.checkpoints import arch_of, load_checkpoint, shapes_of, tensors_of
from settings.arguments import Settings
from settings.calls import call_text, parse_call
from settings.earlier import with_data_of
from settings.errors import Refused
from settings.own_files import own_file
from settings.paths import checkpoint_of, model_of
from training.earlier_networks import smaller_of, times_smaller, whole_of
from training.earlier_tickets import with_tickets
from training.elsewhere import Elsewhere, from_elsewhere


def begin_with(
    settings: Settings, state: dict | None = None
) -> tuple[Settings, dict[str, torch.Tensor] | None, dict | None, Elsewhere | None]:
    """Read the file that --init or --scratch names.

    Returns the settings, the file's network as --arch, the weights to begin with, None for fresh ones, the network's shapes,
    None for those of --arch, and weights from elsewhere, where the file is none of this program's. A run that goes on needs no
    file: its checkpoint, `state`, holds all. Raises Refused if the file cannot be read, or does not fit.
    """
    if settings.run.resume:
        own = state is not None and state["settings"]["arch"] == settings.network.arch  # of another run it is refused later
        return settings, None, state.get("began") if own else None, None
    if settings.network.init:
        try:
            arch, tensors, saved, shapes = starting_weights(settings)
        except Refused:
            if (elsewhere := from_elsewhere(settings)) is None:
                raise
            return with_tickets(elsewhere.settings(settings)), None, None, elsewhere
        settings = with_tickets(with_data_of(settings, saved).replace(arch=arch))
        if (classes := classes_of(settings.network.init)) and len(classes) != tasks.outputs_of(settings.data):
            return settings, None, shapes, Elsewhere(settings.network.init, tensors, classes, ours=True)
        return settings, tensors, shapes, None
    if settings.network.scratch:
        smaller = smaller_of(settings.network.scratch)
        settings = with_data_of(settings, smaller.card.training.get("settings", {}))
        outputs = tasks.outputs_of(settings.data)
        if (classes := len(smaller.card.classes)) != outputs:
            dataset = settings.data.dataset
            raise Refused(f"--scratch: '{settings.network.scratch}' has {classes} classes, --dataset {dataset} {outputs}")
        if (channels := smaller.input_channels) != (here := tasks.inputs_of(settings.data)[0]):
            raise Refused(f"--scratch: '{settings.network.scratch}' reads images of {channels} channels, not {here}")
        whole = whole_of(smaller).shapes() if own_file(smaller.card.arch) else None
        return _with_ratio(settings.replace(arch=smaller.card.arch)), None, whole, None
    return with_tickets(settings), None, None, None


def _with_ratio(settings: Settings) -> Settings:
    """Return the settings in which `scratch` with budget='B' tells how many times smaller its network is."""
    name, options = parse_call(settings.run.procedure)
    if options.get("budget") != "B" or options.get("times"):
        return settings
    return settings.replace(procedure=call_text(name, options | {"times": times_smaller(options["of"], settings)}))


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
    task.compare_names(classes_of(settings.network.init), where)
    weights = [unit.weight for unit in network.all_units.values()]
    zeros, number = sum(int((weight == 0).sum()) for weight in weights), sum(weight.numel() for weight in weights)
    if zeros * 100 > number:
        task.notes.append(f"{zeros} of {number} weights of {where} are 0; they learn again as the others do, unless they are cut")


def classes_of(init: str) -> list[str] | None:
    """Return the names of the classes that what --init names was trained on; None where an older run does not say."""
    path = _file_of(init)
    try:
        return (load_checkpoint(path).get("data") or {}).get("classes")
    except Refused:
        return models.load(path).card.classes
