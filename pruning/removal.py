"""This file removes filters: it makes a plain smaller network with the same outputs from one with filter masks.

Nothing here knows an architecture: what goes where is read from the wiring (`channels.follow`).
"""

import copy

import torch
from torch import Tensor

from models import Network
from pruning.accounting import filter_masks
from pruning.channels import Channels, follow


def is_exact(network: Network) -> bool:
    """Say whether masked equals removed, as every gate says of itself: it does where masks are behind batch norm."""
    return all(unit.gate is None or unit.gate.exact for unit in network.all_units.values())


class Removal:
    """A removal says what is taken out of a network by the filter masks now in force, and cuts its tensors.

    At the published placement a masked filter still gives a constant, which is folded into its readers: exact but for
    the border, where a reader's padding sees 0 instead. Filters may have been taken out of the network before. ValueError
    where parts of filters are masked, or where `channels.follow` refuses the masks.
    """

    def __init__(self, network: Network):
        if not all(unit.gate is None or unit.gate.by_filter for unit in network.all_units.values()):
            raise ValueError("single weights and kernels cannot be taken out, only whole filters")
        # a constant that an earlier removal has left may have to be folded now
        constants = any(joint.constant is not None for joint in network.joints.values())
        self.network, self.exact = network, is_exact(network) and not constants
        kept = filter_masks(network)
        self.channels: Channels = follow(network, kept, None if self.exact else _constants(network, kept))

    def cut(self, name: str, value: Tensor) -> Tensor:
        """Return what stays of a tensor that has the shape of the parameter or buffer of this name."""
        unit, *part = name.rsplit(".", 2)
        if value.dim() == 0 or unit not in self.channels.filters:
            return value
        value = value[self.channels.filters[unit].to(value.device)]
        return value[:, self.channels.inputs[unit].to(value.device)] if part == ["layer", "weight"] else value

    @torch.no_grad()
    def compact(self) -> Network:
        """Return the smaller network, whose tensors are its own; the network that it came from is left as it was."""
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
        """Give the `fresh` optimizer of the smaller network what stays of the state of the whole network's, such as momentum."""
        parameters = dict(smaller.named_parameters())
        for name, parameter in self.network.named_parameters():
            state = optimizer.state.get(parameter)
            if state and name in parameters:
                # a fused optimizer walks state and parameter alike, so both must be laid out alike in memory
                fresh.state[parameters[name]] = {
                    key: torch.empty_like(parameters[name]).copy_(self.cut(name, value))
                    if isinstance(value, Tensor) and value.shape == parameter.shape
                    else value
                    for key, value in state.items()
                }

    def _shapes(self) -> dict:
        """Return the widths and indices of the smaller network, as `Network.reshape` takes them."""
        channels, joints = self.channels, {}
        for name, (width, written) in channels.joints.items():
            constant = bool(channels.constants[name].any())
            # a branch that writes every channel writes them in order, and needs no index
            if constant or len(written) < width:
                joints[name] = {"width": width, "index": written.tolist(), "constant": constant}
        shapes = self.network.shapes()
        units = shapes["units"]
        for name, filters in channels.filters.items():
            whole, _, *groups = units[name]
            left = [groups[0] * len(filters) // max(whole, 1)] if groups else []
            units[name] = [len(filters), len(channels.inputs[name]), *left]
        return {**shapes, "joints": joints}


def ungated(network: Network) -> Network:
    """Return a copy of the whole network without gates, whose tensors hold what they did, in evaluation, to what they keep."""
    copied = copy.deepcopy(network)
    for unit in copied.all_units.values():
        gate, unit.gate = unit.gate, None
        if gate is not None:
            gate.settle(unit)
    for joint in copied.joints.values():
        joint.from_the_right = False  # there are no masks to move
    return copied


def _constants(network: Network, kept: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what filters masked before batch norm still give in evaluation, {unit: (filters,)}.

    It is batch norm of 0, behind the ReLU.
    """
    constants = {}
    for name, mask in kept.items():
        unit = network.get_submodule(name)
        if unit.gate is None or unit.gate.exact or unit.norm is None:
            continue
        norm = unit.norm
        value = (norm.bias - norm.running_mean * norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach().cpu()
        constants[name] = unit.activated(value) * ~mask
    return constants
