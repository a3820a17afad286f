"""This file holds all of a network but its classifier as it is, for the epochs in which --freeze says so."""

from torch import nn

from models.network import Network


def classifier_of(network: Network) -> list[nn.Module]:
    """Return the units of a network that write its outputs."""
    return [network.get_submodule(link.unit) for link in network.links if link.target in network.outputs]


def classifier_alone(network: Network, noise: bool = True) -> list[nn.Parameter]:
    """Put all of a network but its classifier in evaluation mode, and return the parameters that learn: the classifier's.

    So batch norm keeps its statistics and uses them, and nothing is dropped but, with `noise`, by the classifier itself.
    """
    network.eval()
    units = classifier_of(network)
    for unit in units if noise else ():
        unit.train()
    return [parameter for unit in units for parameter in unit.parameters() if parameter.requires_grad]


def idle(run, epochs: int) -> set[int]:
    """Return the optimiser's numbers of the parameters that have not learned yet after so many epochs of a run."""
    if epochs > run.settings.training.freeze or not run.settings.training.freeze:
        return set()
    learning = {id(parameter) for unit in classifier_of(run.model) for parameter in unit.parameters()}
    parameters = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    return {number for number, parameter in enumerate(parameters) if id(parameter) not in learning}
