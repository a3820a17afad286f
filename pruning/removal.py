"""This file removes filters: from a network with filter masks to a plain smaller one with the same outputs.

Nothing here knows an architecture: what goes where is read from the wiring (`channels.follow`).
"""

import copy

import torch
from torch import Tensor

from models import Network
from pruning.accounting import filter_masks
from pruning.channels import Channels, follow


def is_exact(network: Network) -> bool:
    """Whether masked equals removed, as every gate says of itself: masks are on units' outputs, behind batch norm."""
    return all(unit.gate is None or unit.gate.exact for unit in network.all_units.values())


class Removal:
    """What is taken out of a network, and how its tensors are cut: built from the filter masks now in force.

    At the published placement a masked filter still gives a constant, which is folded into its readers: exact but for
    the border, where a reader's padding sees 0 instead. ValueError where parts of filters are masked, where filters were
    taken out before, or where `channels.follow` refuses the masks.
    """

    def __init__(self, network: Network):
        if not all(unit.gate is None or unit.gate.by_filter for unit in network.all_units.values()):
            raise ValueError("single weights and kernels cannot be taken out, only whole filters")
        if any(joint.width is not None for joint in network.joints.values()):
            raise ValueError("filters have been taken out of this network already")
        self.network, self.exact = network, is_exact(network)
        kept = filter_masks(network)
        self.channels: Channels = follow(network, kept, None if self.exact else _constants(network, kept))

    def cut(self, name: str, value: Tensor) -> Tensor:
        """What is left of a tensor that has the shape of the parameter or buffer of this name."""
        unit, *part = name.rsplit(".", 2)
        if value.dim() == 0 or unit not in self.channels.filters:
            return value
        value = value[self.channels.filters[unit].to(value.device)]
        return value[:, self.channels.inputs[unit].to(value.device)] if part == ["layer", "weight"] else value

    @torch.no_grad()
    def compact(self) -> Network:
        """The smaller network, its tensors its own; the one it came from is left as it was."""
        smaller = ungated(self.network)
        values = {name: self.cut(name, value) for name, value in smaller.state_dict().items()}
        values |= {f"{joint}.constant": constant for joint, constant in self.channels.constants.items()}
        smaller.reshape(self._shapes())
        smaller.load_state_dict({name: values[name] for name in smaller.state_dict()})
        for name, shift in self.channels.shifts.items():
            unit = smaller.get_submodule(name)
            shift = shift[self.channels.filters[name]].to(unit.weight)
            if unit.norm is not None:
                unit.norm.running_mean -= shift
            elif unit.layer.bias is not None:
                unit.layer.bias += shift
        return smaller.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def carry(self, optimizer: torch.optim.Optimizer, smaller: Network, fresh: torch.optim.Optimizer) -> None:
        """Give the smaller network's optimizer what is left of the other's state, such as momentum."""
        parameters = dict(smaller.named_parameters())
        for name, parameter in self.network.named_parameters():
            state = optimizer.state.get(parameter)
            if state and name in parameters:
                # laid out in memory as the parameter is: fused optimizers walk both alike
                fresh.state[parameters[name]] = {
                    key: torch.empty_like(parameters[name]).copy_(self.cut(name, value))
                    if isinstance(value, Tensor) and value.shape == parameter.shape
                    else value
                    for key, value in state.items()
                }

    def _shapes(self) -> dict:
        """What `Network.reshape` takes."""
        channels, joints = self.channels, {}
        for name, (width, written) in channels.joints.items():
            constant = bool(channels.constants[name].any())
            # a branch that writes every channel writes them in order
            if constant or len(written) < width:
                joints[name] = {"width": width, "index": written.tolist(), "constant": constant}
        units = {name: [len(filters), len(channels.inputs[name])] for name, filters in channels.filters.items()}
        return {"units": units, "joints": joints}


def ungated(network: Network) -> Network:
    """A copy without masks: the whole network."""
    copied = copy.deepcopy(network)
    for unit in copied.all_units.values():
        unit.gate = None
    return copied


def _constants(network: Network, kept: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a filter masked before batch norm still gives, in evaluation: its batch norm of 0, behind the ReLU."""
    constants = {}
    for name, mask in kept.items():
        unit = network.get_submodule(name)
        if unit.gate is None or unit.gate.exact or unit.norm is None:
            continue
        norm = unit.norm
        value = (norm.bias - norm.running_mean * norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach().cpu()
        constants[name] = (value.clamp_min(0) if unit.activation else value) * ~mask
    return constants
