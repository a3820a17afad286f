"""This file makes the copy of a network that is timed and exported: batch norm folded into the layers, joints in place."""

import copy

import torch
from torch import Tensor, nn

from models import Joint, Link, Network, Unit


@torch.no_grad()
def folded(network: Network, align: int | None = None, in_place: bool = True) -> Network:
    """Return a copy of the network for deployment. It has the same outputs, and evaluation mode only.

    A branch that writes by index gets rows of zeros for the other channels of its stream: a vector unit computes 16
    filters at once, so that the rows cost less than an indexed addition. `align` is for runtimes with kernels for blocks
    of channels: every tensor is filled up with channels of zeros to a multiple of it, and a stream has its last width
    from the start. Not `in_place`, no joint overwrites what it reads, as for a network that is trained further.
    """
    network = copy.deepcopy(network).eval()
    for unit in network.all_units.values():
        _fold(unit)
    for position, link in enumerate(network.links):
        if link.joint is not None:
            joint = network.get_submodule(link.joint)
            _write_by_rows(joint, network.get_submodule(link.unit))
            if in_place and not _is_needed_again(network, position):
                network.set_submodule(link.joint, InPlaceJoint(joint))
    if align is not None:
        _fill_up(network, align)
    network.storable = False
    return network.requires_grad_(False).to(memory_format=torch.channels_last)


class InPlaceJoint(Joint):
    """A joint that overwrites its branch or its stream, because no later layer reads them again."""

    def __init__(self, joint: Joint):
        super().__init__(joint.activation)
        self.width, self.index, self.constant = joint.width, joint.index, joint.constant

    def forward(self, branch: Tensor, stream: Tensor) -> Tensor:
        if stream.shape[1] < branch.shape[1]:
            branch[:, : stream.shape[1]] += stream
            return branch.relu_() if self.activation else branch
        stream = self.widened(branch, stream)
        if branch.shape[1] == stream.shape[1] > 0:
            stream.add_(branch)
        elif branch.shape[1]:
            stream.index_add_(1, self.index, branch.to(stream.dtype))
        return stream.relu_() if self.activation else stream


def _is_needed_again(network: Network, position: int) -> bool:
    """Return whether a joint's stream may share memory with a node that a later link reads, or an input or output."""
    before, target = network.links[:position], network.links[position].target
    shared = {target}
    for link in reversed(before):
        if link.unit is None and link.target in shared:
            shared.add(link.source)
    later = {link.source for link in network.links[position + 1 :]} | {"input", *network.outputs}
    return not shared.isdisjoint(later - {target})


def _fold(unit: Unit) -> None:
    """Fold batch norm into the layer: W' = W * s and b' = (b - mean) * s + beta, with s = gamma / sqrt(var + eps)."""
    if unit.norm is None:
        return
    norm, layer = unit.norm, unit.layer
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    bias = -norm.running_mean if layer.bias is None else layer.bias - norm.running_mean
    layer.bias = nn.Parameter(bias * scale + norm.bias)
    layer.weight = nn.Parameter(layer.weight * scale.view(-1, *[1] * (layer.weight.dim() - 1)))
    unit.norm = None


def _write_by_rows(joint: Joint, branch: Unit) -> None:
    """Let the folded last unit of a branch write all channels of the stream, so that the joint needs no index."""
    if joint.index is None or branch.groups > 1 or (branch.filters == 0 and joint.constant is None):
        return
    layer = branch.layer
    weight = layer.weight.new_zeros(joint.width, *layer.weight.shape[1:])
    bias = layer.weight.new_zeros(joint.width) if joint.constant is None else joint.constant.clone()
    if branch.filters:
        weight[joint.index] = layer.weight
        bias[joint.index] += layer.bias
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    joint.width = joint.index = joint.constant = None


def _fill_up(network: Network, align: int) -> None:
    """Fill the channels of every tensor of a folded network up to a multiple of `align`, except where they are fixed."""
    widths, fixed = network.widths(), _fixed_widths(network)
    widths = {node: n if node in fixed else -(-n // align) * align for node, n in widths.items()}
    for link in network.links:
        joint = link.joint and network.get_submodule(link.joint)
        if joint:
            joint.width = widths[link.target]
        unit = link.unit and network.get_submodule(link.unit)
        # a branch without filters adds nothing, and one that still writes by index keeps the filters that this counts
        if unit and (unit.filters or not joint):
            by_index = joint and joint.index is not None
            _fill_up_unit(unit, unit.filters if by_index else widths[link.target], widths[link.source], link)


def _fixed_widths(network: Network) -> set[str]:
    """Return the nodes that are not filled up.

    They are the input and the outputs, nodes that are copied to an output or tied to a fixed node, and the nodes around a
    convolution in groups.
    """
    fixed, size = {"input", *network.outputs}, 0
    units = network.all_units
    while size < len(fixed):
        size = len(fixed)
        for link in network.links:
            in_groups = link.unit is not None and units[link.unit].groups > 1 and not link.ties
            if in_groups or (link.ties and not fixed.isdisjoint((link.source, link.target))):
                fixed |= {link.source, link.target}
            elif link.unit is None and link.target in fixed:
                fixed.add(link.source)
    return fixed


def _fill_up_unit(unit: Unit, filters: int, channels: int, link: Link) -> None:
    """Add rows and columns of zeros to a folded unit, up to so many filters and channels; a unit without inputs gets none."""
    layer, (rows, columns) = unit.layer, unit.layer.weight.shape[:2]
    width = columns if link.ties or unit.groups > 1 else channels
    weight = layer.weight.new_zeros(filters, width if columns else 0, *layer.weight.shape[2:])
    weight[:rows, :columns] = layer.weight
    bias = layer.weight.new_zeros(filters)
    if layer.bias is not None:
        bias[:rows] = layer.bias
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    if link.ties:
        layer.groups = max(filters, 1)
