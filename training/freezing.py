"""This file holds all of a network but its classifier as it is, for the epochs in which --freeze says so."""

import torch
from torch import nn

from models.network import Network
from settings.errors import Refused


def learning_in(run, epoch: int) -> list[nn.Parameter] | None:
    """Return the parameters that alone learn in this epoch of a run, its network being made ready for that; None for all."""
    freeze = run.settings.training.freeze
    if epoch < freeze:
        return classifier_alone(run.model, run.now.noise)
    if freeze:
        begin_momentum(run.optimizer)
    return None


def begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give parameters that have not learned yet a momentum of 0, with which their first step is as without any.

    torch's fused steps take no parameters without momentum among others that have some.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            if not optimizer.state[parameter]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def classifier_alone(network: Network, noise: bool = True) -> list[nn.Parameter]:
    """Put all of a network but its classifier in evaluation mode, and return the parameters that learn: the classifier's.

    So batch norm keeps its statistics and uses them, and nothing is dropped but, with `noise`, by the classifier itself.
    """
    network.eval()
    units = network.last_units.values()
    for unit in units if noise else ():
        unit.train()
    return [parameter for unit in units for parameter in unit.parameters() if parameter.requires_grad]


def check_alone(settings, plan, team) -> None:
    """Raise Refused in a team of several for what trains a part of a network: they average the gradients of all layers."""
    part = f"--freeze {settings.training.freeze}" if settings.training.freeze else ""
    part = part if all(stage.task for stage in plan.stages) else f"--procedure {settings.run.procedure}"
    if part and team.size > 1:
        raise Refused(f"{part} is for a single process, and this is a team of {team.size}")


def idle(run, epochs: int) -> set[int]:
    """Return the optimiser's numbers of the parameters that may not have learned yet after so many epochs of a run."""
    parameters = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    if run.now.distill is not None:  # the losses that count in the stage may reach any part
        return {*range(len(parameters))}
    if epochs > run.settings.training.freeze or not run.settings.training.freeze:
        return set()
    learning = {id(parameter) for unit in run.model.last_units.values() for parameter in unit.parameters()}
    return {number for number, parameter in enumerate(parameters) if id(parameter) not in learning}
