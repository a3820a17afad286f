"""The network, its masks and its optimizer, from the settings."""

from pathlib import Path

import torch

import models
from models.layers import initialise
from pruning import Pruner, accounting
from runs.folder import load_checkpoint
from settings.errors import Refused
from settings.registry import parse_call
from tasks import classification


def build_pruner(model: models.Network, settings) -> Pruner | None:
    """Masks on the network. Refused if so much may not go."""
    if settings.prune_type == "none":
        return None
    budgets = {"target_macs": "macs", "target_params": "parameters"}
    flag = next((name for name in budgets if getattr(settings, name) is not None), "prune_rate")
    budget = budgets.get(flag)
    flag = "prune_scope" if parse_call(settings.prune_scope)[0] in ("preset", "sensitivity") else flag
    try:
        return Pruner(
            model,
            prune_type=settings.prune_type,
            criterion=settings.prune_imp,
            scope=settings.prune_scope,
            phase=settings.prune_phase,
            schedule=settings.prune_schedule,
            rate=settings.prune_rate,
            gate=settings.prune_gate,
            # a dry run is shorter than most frequencies
            frequency="1ep" if settings.dry_run else settings.prune_freq,
            until=settings.prune_until,
            seed=settings.seed,
            residual=settings.residual,
            budget=budget,
            round_to=settings.round_to,
            image_size=settings.image_size,
        )
    except ValueError as error:
        raise Refused(f"--{flag}: {error}") from None


def build_network(settings, shapes: dict | None = None) -> tuple[models.Network, accounting.Count]:
    """A fresh network on the device, and what the whole one holds. Refused if it does not go with the data.

    With --scratch it has the smaller widths of that file, or those of a checkpoint's `shapes`; with --init the weights
    of a trained one, unless the run goes on from its own.
    """
    tensors = starting_weights(settings) if settings.init and not settings.resume else None
    classes = classification.class_count(settings.dataset, settings.data_dir)
    if settings.scratch and shapes is None:
        given = models.load(settings.scratch)
        settings.arch, shapes = given.card.arch, given.shapes()
        if (known := len(given.card.classes)) != classes:
            raise Refused(f"--scratch: '{settings.scratch}' has {known} classes, --dataset {settings.dataset} {classes}")
    model = models.build(settings.arch, classes=classes)
    try:
        whole = accounting.dense(model, settings.image_size)
    except RuntimeError:
        raise Refused(f"images of {settings.image_size} pixels are too small for {settings.arch}") from None
    if shapes is not None:
        model.reshape(shapes)
        initialise(model)
    if tensors is not None:
        try:
            model.load_state_dict(tensors)
        except RuntimeError:
            raise Refused(f"--init: '{settings.init}' is of another network than {settings.arch} of {classes} classes") from None
    return model.to(settings.device, memory_format=torch.channels_last), whole


def starting_weights(settings) -> dict[str, torch.Tensor]:
    """The tensors that --init names; where no network was typed, `settings.arch` becomes theirs.

    A run's folder, a checkpoint, or a model.pt of a whole network. Refused if it is none of them, or of another
    network.
    """
    path = Path(settings.init)
    path = path / "checkpoint.pt" if path.is_dir() else path
    try:
        state = load_checkpoint(path)
    except Refused as not_a_checkpoint:
        try:
            given = models.load(path)
        except Refused:
            raise Refused(f"--init: {not_a_checkpoint}") from None
        arch, tensors = given.card.arch, given.state_dict()
        smaller = given.shapes() != models.build(arch, classes=len(given.card.classes)).shapes()
    else:
        arch, smaller = state["settings"]["arch"], (state.get("after") or {}).get("shapes") or state.get("scratch")
        tensors = {name: value for name, value in state["model"].items() if ".gate." not in name}
        smaller = smaller and smaller != models.build(arch).shapes()
        if not smaller and any((mask == 0).any() for name, mask in state["model"].items() if name.endswith(".gate.mask")):
            raise Refused(f"--init: '{settings.init}' has been pruned; a whole network is needed")
    if smaller:
        raise Refused(f"--init: filters have been taken out of '{settings.init}' already")
    if not {"arch", "layers"} & settings.typed.keys():
        settings.arch = arch
    elif settings.arch != arch:
        raise Refused(f"--init: '{settings.init}' is a {arch}, not a {settings.arch}")
    return tensors
