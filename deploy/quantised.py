"""This file makes the copy of a network that computes in 8 bits: where it rounds, by which ranges, and how these are learned.

Weights are int8, with a scale for each filter and the zero point 0; activations are uint8, with one scale and zero point
for each tensor; biases are int32. Where activations are rounded is read from the wiring: once for each tensor that a unit
or a joint writes, and before a unit that reads what nobody has rounded, which are images and means over a map. A network
whose output is a linear layer gives floats.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploy.folding import folded
from models import Joint, Network, Unit
from models.layers import Gate
from settings.errors import Failed

MOMENTUM, DECAY = 0.9, 0.99  # of the optimiser, and of the moving averages of ranges
LEAST_SCALE = 1e-12
BIASES = 2.0**30  # no bias is more than so many of its steps, so that sums of products fit into int32 beside it

# onnxruntime multiplies bytes by fours; a ResNet-20 with half of its MACs takes 2.5 times as long without
BLOCK = 4


class Rounding(nn.Module):
    """A rounding holds a tensor of activations to 256 levels, q = round(r / S) + Z, over a range that contains 0.

    `watches` says how the range follows what is seen: "all" holds every value, "average" is a moving average of least and
    largest values, and "" leaves it. While it `rounds`, gradients pass straight through where a value is within the range.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.watches, self.rounds = "all", False

    def grid(self) -> tuple[Tensor, Tensor]:
        """Return the scale, float32, and the zero point, int32."""
        span = self.high - self.low
        scale = torch.where(span > LEAST_SCALE, span, torch.full_like(span, 255.0)) / 255
        return scale, (-self.low / scale).round().clamp(0, 255).int()

    @torch.no_grad()
    def watch(self, x: Tensor) -> None:
        """Let the range follow the values of `x`."""
        low, high = x.amin().clamp_max(0.0), x.amax().clamp_min(0.0)
        if self.watches == "all":
            self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        else:
            self.low, self.high = (old.lerp(new, 1 - DECAY) for old, new in ((self.low, low), (self.high, high)))

    def forward(self, x: Tensor) -> Tensor:
        if 0 in x.shape[1:]:
            return x
        if self.watches:
            self.watch(x.detach())
        return torch.fake_quantize_per_tensor_affine(x, *self.grid(), 0, 255) if self.rounds else x


class Rounded(Gate):
    """This gate rounds a unit's weight, bias and output and, with `reads_floats`, its input.

    `inputs` is the rounding of what the unit reads, `outputs` that of what it gives, or None. Weights have the levels from
    -`most` to `most`.
    """

    def __init__(self, inputs: Rounding, outputs: Rounding | None, most: int, reads_floats: bool):
        super().__init__()
        self.inputs, self.outputs, self.most, self.reads_floats = inputs, outputs, most, reads_floats
        self.rounds = False

    @torch.no_grad()
    def scales_of(self, unit: Unit) -> Tensor:
        """Return the scale of each filter's weights, (filters,): large enough for the bias to be an int32, too."""
        weight, bias = unit.layer.weight, unit.layer.bias
        scales = weight.flatten(1).abs().amax(1) / self.most
        if bias is not None:
            scales = torch.maximum(scales, bias.abs() / (self.inputs.grid()[0] * BIASES))
        return scales.clamp_min(LEAST_SCALE)

    def values(self, unit: Unit) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias in force, both rounded."""
        scales, bias = self.scales_of(unit), unit.layer.bias
        zeros = torch.zeros_like(scales, dtype=torch.int32)
        weight = torch.fake_quantize_per_channel_affine(unit.layer.weight, scales, zeros, 0, -self.most, self.most)
        if bias is not None:
            steps = self.inputs.grid()[0] * scales
            bias = bias + ((bias / steps).round() * steps - bias).detach()
        return weight, bias

    def product(self, unit: Unit, x: Tensor) -> Tensor:
        x = self.inputs(x) if self.reads_floats else x
        if not self.rounds or unit.layer.weight.numel() == 0:
            return unit.multiply(x, unit.layer.weight)
        return product(unit, x, *self.values(unit))

    def forward(self, unit: Unit, x: Tensor) -> Tensor:
        return x if self.outputs is None else self.outputs(x)


class RoundedJoint(nn.Module):
    """A joint whose sum is rounded behind the ReLU."""

    def __init__(self, joint: Joint, outputs: Rounding):
        super().__init__()
        self.joint, self.outputs = joint, outputs

    def forward(self, branch: Tensor, stream: Tensor) -> Tensor:
        return self.outputs(self.joint(branch, stream))


def product(unit: Unit, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the product of a unit's layer with `x` by this weight, which is not empty, and this bias."""
    if not unit.is_convolution:
        return F.linear(x, weight, bias)
    layer = unit.layer
    return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def quantised(network: Network, most: int = 127) -> Network:
    """Return a copy with batch norm folded, that can be rounded. Its ranges are empty, and it does not round yet.

    What was removed leaves odd numbers of channels, which are filled up with zeros: these stay 0, rounded and trained.
    """
    copied = folded(network, BLOCK, in_place=False)
    writers: dict[str, Rounding] = {}
    linear = {link.target for link in copied.links if link.unit and not copied.get_submodule(link.unit).is_convolution}
    for link in copied.links:
        if link.unit is None:
            if link.source in writers:
                writers[link.target] = writers[link.source]
            continue
        unit = copied.get_submodule(link.unit)
        # behind a convolution a linear layer reads means over maps, which are between the levels of the maps
        reads_floats = link.source not in writers or (not unit.is_convolution and link.source not in linear)
        inputs = Rounding() if reads_floats else writers[link.source]
        outputs = None if link.target in copied.outputs and not unit.is_convolution else Rounding()
        unit.gate = Rounded(inputs, outputs, most, reads_floats)
        if outputs is not None:
            writers[link.target] = outputs
        if link.joint is not None:
            writers[link.target] = Rounding()
            copied.set_submodule(link.joint, RoundedJoint(copied.get_submodule(link.joint), writers[link.target]))
    return copied.to(next(network.parameters()).device)


def roundings(network: Network) -> list[Rounding]:
    """Return every rounding of activations, in the order of execution."""
    return [module for module in network.modules() if isinstance(module, Rounding)]


def set_mode(network: Network, watches: str = "", rounds: bool = True, weights: bool = True) -> None:
    """Say of all roundings whether they follow what they see, whether activations are rounded, and whether weights are."""
    for module in network.modules():
        if isinstance(module, Rounding):
            module.watches, module.rounds = watches, rounds
        elif isinstance(module, Rounded):
            module.rounds = weights


@torch.no_grad()
def calibrate(network: Network, batches: Iterable) -> None:
    """Let each range hold all values that it sees in these batches, whatever their order, and round from now on."""
    set_mode(network, "all", rounds=False, weights=False)
    for inputs, _ in batches:
        network(inputs)
    set_mode(network)


def train(network: Network, task, batches: int, lr: float, delay: float) -> None:
    """Train the folded weights through their rounding, by gradient descent on so many training batches.

    Ranges of activations are moving averages; activations are rounded behind the first `delay` of the batches only, because
    ranges move too much before. Dropout is off. Failed where that ends in values that are not finite.
    """
    network.requires_grad_(True)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=MOMENTUM)
    for number, (inputs, targets) in enumerate(_training(task, batches)):
        set_mode(network, "average", rounds=number >= int(delay * batches))
        optimizer.zero_grad()
        sum(task.losses(network(inputs), targets).values()).backward()
        optimizer.step()
    network.requires_grad_(False)
    set_mode(network)
    if not all(value.isfinite().all() for value in network.state_dict().values() if value.is_floating_point()):
        raise Failed(f"--form int8: trained at lr={lr:g} the network is not finite: choose a smaller one")


def _training(task, batches: int) -> Iterable:
    """Yield so many training batches, of as many epochs as it takes."""
    epoch = number = 0
    while number < batches:
        for batch in task.batches(epoch):
            if number == batches:
                return
            yield batch
            number += 1
        epoch += 1
