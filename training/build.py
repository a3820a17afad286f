"""The network, its masks and its optimiser are built from the settings; what cannot be built is refused."""

from collections.abc import Callable
from pathlib import Path

import torch

import models
import tasks
from pruning import Pruner, accounting
from runs.folder import load_checkpoint
from settings.arguments import Settings
from settings.errors import Refused
from settings.registry import OPTIMISERS, REGULARIZERS, parse_call


def build_pruner(model: models.Network, settings: Settings) -> Pruner | None:
    """The pruner, its masks put on the network, or None where nothing is pruned. Refused if so much may not go."""
    asked = settings.pruning
    if asked.prune_type == "none":
        return None
    budgets = {"target_macs": "macs", "target_params": "parameters"}
    flag = next((name for name in budgets if getattr(asked, name) is not None), "prune_rate")
    budget = budgets.get(flag)
    flag = "prune_scope" if parse_call(asked.prune_scope)[0] in ("preset", "sensitivity") else flag
    try:
        return Pruner(
            model,
            prune_type=asked.prune_type,
            criterion=asked.prune_imp,
            scope=asked.prune_scope,
            phase=asked.prune_phase,
            schedule=asked.prune_schedule,
            rate=asked.prune_rate,
            gate=asked.prune_gate,
            # a dry run is shorter than most frequencies
            frequency="1ep" if settings.run.dry_run else asked.prune_freq,
            until=asked.prune_until,
            seed=settings.run.seed,
            residual=asked.residual,
            budget=budget,
            round_to=asked.round_to,
            image_size=settings.data.image_size,
        )
    except ValueError as error:
        raise Refused(f"--{flag}: {error}") from None


def build_optimizer(network: models.Network, training, device: str) -> torch.optim.Optimizer:
    """The optimiser that --optimizer names, over the parameters of a network and of the gates in it."""
    return OPTIMISERS.get(training.optimizer)(parameter_groups(network), training, device != "mps")


def parameter_groups(network: models.Network) -> list[dict]:
    """The parameters in groups for an optimiser: the network's, and apart from them those of its gates, if there are any.

    Gates have no weight decay; `scale` is what the learning rate of their group is multiplied with.
    """
    gates = [unit.gate for unit in network.all_units.values() if unit.gate is not None]
    by_scale: dict[float, list] = {}
    for gate in gates:
        by_scale.setdefault(gate.learning_rate, []).extend(gate.parameters())
    of_gates = {id(parameter) for parameters in by_scale.values() for parameter in parameters}
    groups = [{"params": [parameter for parameter in network.parameters() if id(parameter) not in of_gates]}]
    return groups + [
        {"params": parameters, "weight_decay": 0.0, "scale": scale} for scale, parameters in by_scale.items() if parameters
    ]


def build_regulariser(training) -> tuple[dict[str, Callable], Callable | None]:
    """What --reg names: penalties on the network by name, weighted by --odecay, and a proximal step or None."""
    if training.reg == "none":
        return {}, None
    function = REGULARIZERS.get(training.reg, weight=training.odecay)
    if REGULARIZERS.entry(training.reg).kind == "proximal":
        return {}, function
    return {function.__name__: function}, None


def gate_penalties(network: models.Network) -> dict[str, Callable]:
    """The penalty of the gates that learn, summed up under the name "gates"; nothing where no gate has parameters."""
    gates = [unit.gate for unit in network.all_units.values() if unit.gate is not None]
    learned = [gate for gate in gates if next(gate.parameters(), None) is not None]
    return {"gates": lambda _: torch.stack([gate.penalty() for gate in learned]).sum()} if learned else {}


def build_network(settings: Settings, tensors: dict | None) -> tuple[models.Network, accounting.Count]:
    """A network on the CPU, fresh or with trained `tensors`, and what it holds. Refused if it does not fit the data."""
    arch, size, outputs = settings.network.arch, settings.data.image_size, tasks.outputs_of(settings.data)
    model = models.build(arch, classes=outputs, channels=settings.data.channels)
    try:
        whole = accounting.dense(model, size)
    except RuntimeError:
        raise Refused(f"images of {size} pixels are too small for {arch}") from None
    if tensors is not None:
        try:
            model.load_state_dict(tensors)
        except RuntimeError:
            raise Refused(f"--init: '{settings.network.init}' is of another network than {arch} of {outputs} classes") from None
    return model, whole


def begin_with(settings: Settings) -> tuple[Settings, dict[str, torch.Tensor] | None]:
    """What --init and --scratch name: the settings with its network as --arch, and the weights to begin with, if any.

    A run that goes on has its own network and weights already. Refused if the file is none, or does not fit.
    """
    if settings.run.resume:
        return settings, None
    if settings.network.init:
        arch, tensors = starting_weights(settings)
        return settings.replace(arch=arch), tensors
    if settings.network.scratch:
        smaller, outputs = models.load(settings.network.scratch), tasks.outputs_of(settings.data)
        if (known := len(smaller.card.classes)) != outputs:
            dataset = settings.data.dataset
            raise Refused(f"--scratch: '{settings.network.scratch}' has {known} classes, --dataset {dataset} {outputs}")
        return settings.replace(arch=smaller.card.arch), None
    return settings, None


def starting_weights(settings: Settings) -> tuple[str, dict[str, torch.Tensor]]:
    """The network and the tensors that --init names: a run's folder, a checkpoint, or a model.pt of a whole network.

    Refused if it is none of them, or of another network than the one that was typed.
    """
    asked = settings.network
    path = Path(asked.init)
    path = path / "checkpoint.pt" if path.is_dir() else path
    try:
        state = load_checkpoint(path)
    except Refused as not_a_checkpoint:
        try:
            saved = models.load(path)
        except Refused:
            raise Refused(f"--init: {not_a_checkpoint}") from None
        arch, tensors = saved.card.arch, saved.state_dict()
        smaller = saved.shapes() != models.build(arch, classes=len(saved.card.classes), channels=saved.input_channels).shapes()
    else:
        arch, shapes = state["settings"]["arch"], state["shapes"]
        smaller = bool(shapes)
        tensors = {name: value for name, value in state["model"].items() if ".gate." not in name}
        masks = [value for name, value in state["model"].items() if name.endswith(".gate.mask")]
        if not smaller and any((mask == 0).any() for mask in masks):
            raise Refused(f"--init: '{asked.init}' has been pruned; a whole network is needed")
    if smaller:
        raise Refused(f"--init: filters have been taken out of '{asked.init}' already")
    if {"arch", "layers"} & settings.typed.keys() and asked.arch != arch:
        raise Refused(f"--init: '{asked.init}' is a {arch}, not a {asked.arch}")
    return arch, tensors


def starting_classes(settings: Settings) -> list[str] | None:
    """Return the names of the classes that what --init names was trained on; None where an older run does not say."""
    path = Path(settings.network.init)
    path = path / "checkpoint.pt" if path.is_dir() else path
    try:
        return load_checkpoint(path).get("data", {}).get("classes")
    except Refused:
        return models.load(path).card.classes
