"""This file defines what every network here is made of: units, each with a slot for a gate."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.numerics import computable
from models.parts import Dropout, WholeMap


class Gate(nn.Module):
    """A gate stands in a unit's slot and decides what of the unit is in force. This base passes everything through.

    A gate overrides only what it changes. Its own trainable parameters are its `parameters()`. `exact` says whether a
    filter that the gate masks is as good as removed; `by_filter` whether the gate decides about whole filters; `scales`
    whether it multiplies by other numbers than 0 and 1; the learning rate of its parameters is `learning_rate` times that of
    the weights; `term` names its penalty in the loss.
    """

    exact = True
    by_filter = True
    scales = False
    learning_rate = 1.0
    term = "gates"

    @property
    def live(self) -> Tensor | None:
        """The filters in force, (filters,) of 0 and 1, or None where no filter is masked."""
        return None

    @property
    def reads(self) -> Tensor | None:
        """The input channels that the unit reads, (inputs,) bool, or None where it reads all."""
        return None

    def weight(self, weight: Tensor) -> Tensor:
        """The weight that the unit multiplies with, made from its dense weight and of the same shape."""
        return weight

    def product(self, unit: "Unit", x: Tensor) -> Tensor:
        """Return the product of the unit's layer with its input `x`."""
        return unit.multiply(x, self.weight(unit.layer.weight))

    def normalise(self, unit: "Unit", x: Tensor) -> Tensor:
        """Return batch norm of the product `x`; this is called only for a unit that has batch norm."""
        return unit.norm(x)

    def forward(self, unit: "Unit", x: Tensor) -> Tensor:
        """Return what the unit hands on of its output `x`, which is behind the ReLU if the unit has one.

        Before a ReLU6 stands a gate that scales: behind it, what it does could not be written into batch norm.
        """
        return self.multiplied(x)

    def multiplied(self, x: Tensor) -> Tensor:
        """Return the output `x` times the gate; for an output that `normalise` has not masked yet."""
        return x

    def penalty(self) -> Tensor | None:
        """The scalar that the gate adds to the loss, or None where it adds nothing."""
        return None

    def decide(self) -> Tensor:
        """Return what the gate would keep now: a new bool tensor in its mask's shape. Here a single True, which broadcasts."""
        return torch.ones((), dtype=torch.bool)

    def settle(self, unit: "Unit") -> None:
        """Write into a unit without gate what this gate does, in evaluation, to what it keeps. A mask does nothing to that."""


class Unit(nn.Module):
    """A unit is a layer, then batch norm, a ReLU and dropout, the last three optional, with an empty slot for a gate.

    `layer` is a Conv2d or a Linear; its outputs are the unit's filters. `activation` is a ReLU or, as "relu6", one of at most
    6. Dropout takes the gate's output or, with `drops_inputs`, the layer's input; with a rate of 0 there is none. ValueError
    for a convolution whose padding is not a number of zeros.
    """

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        norm: bool = True,
        activation: bool | Literal["relu6"] = True,
        dropout: float = 0.0,
        drops_inputs: bool = False,
    ):
        super().__init__()
        if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
            raise ValueError(
                f"a unit's convolution is padded with a number of zeros, not by {layer.padding_mode}, {layer.padding}"
            )
        self.layer = layer
        width = layer.weight.shape[0]
        kind = nn.BatchNorm2d if isinstance(layer, nn.Conv2d) else nn.BatchNorm1d
        self.norm = kind(width) if norm else None
        self.activation = activation
        self.dropout, self.drops_inputs = Dropout(dropout) if dropout else None, drops_inputs
        self.in_groups = self.groups > 1  # also once all but one have been taken out
        self.gate: Gate | None = None

    @property
    def is_convolution(self) -> bool:
        return isinstance(self.layer, nn.Conv2d)

    @property
    def is_linear(self) -> bool:
        """Whether the layer is a linear one, also where it is written as a convolution over a whole map."""
        return isinstance(self.layer, nn.Linear | WholeMap)

    @property
    def filters(self) -> int:
        return self.layer.weight.shape[0]

    @property
    def groups(self) -> int:
        """The groups of a convolution, each of which reads channels of its own; 1 for a linear layer."""
        return self.layer.groups if self.is_convolution else 1

    @property
    def is_scale(self) -> bool:
        """Whether it is a learned scale of each channel, written as a convolution: its filters have one weight each."""
        return self.in_groups and self.layer.weight.shape[1:].numel() == 1

    @property
    def weight(self) -> Tensor:
        """The dense weight, (filters, inputs / groups, height, width) or (filters, inputs)."""
        return self.layer.weight

    @property
    def weight_in_force(self) -> Tensor:
        """The weight that the forward pass multiplies with: the dense one unless a weight mask is on."""
        return self.layer.weight if self.gate is None else self.gate.weight(self.layer.weight)

    @property
    def live(self) -> Tensor | None:
        """The filters in force, (filters,) of 0 and 1, or None where no filter is masked."""
        return None if self.gate is None else self.gate.live

    @torch.no_grad()
    def scale(self, by: Tensor) -> None:
        """Multiply what each filter gives by a value, (filters,): in batch norm or, without it, in the layer.

        Behind a ReLU that is the same, as long as no value is negative; a ReLU6 takes what is multiplied.
        """
        if self.norm is not None:
            self.norm.weight *= by
            self.norm.bias *= by
            return
        self.layer.weight *= by.view(-1, *[1] * (self.layer.weight.dim() - 1))
        if self.layer.bias is not None:
            self.layer.bias *= by

    def alive(self, dtype: torch.dtype) -> Tensor:
        """Like `live`, but all ones without a mask. Always a new tensor on the weight's device, which the caller may modify."""
        live = self.live
        if live is None:
            return torch.ones(self.filters, dtype=dtype, device=self.layer.weight.device)
        return live.detach().to(dtype, copy=True)

    def multiply(self, x: Tensor, weight: Tensor, with_bias: bool = True) -> Tensor:
        """Return the layer's product with its input `x`, by a `weight` of the same shape as the layer's own."""
        layer, bias = self.layer, self.layer.bias if with_bias else None
        if not self.is_convolution:
            return F.linear(x, weight, bias)
        if weight.numel() == 0:
            # without an input or a filter there is nothing to multiply, so the result is the bias, or zeros
            sizes = zip(x.shape[2:], layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)
            pixels = ((n + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for n, k, stride, padding, dilation in sizes)
            y = x.new_zeros(x.shape[0], weight.shape[0], *pixels)
            return y if bias is None else y + bias.view(-1, 1, 1)
        x, stride, padding = computable(x, weight, layer.stride, layer.padding)
        return F.conv2d(x, weight, bias, stride, padding, layer.dilation, layer.groups)

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output for its input `x`, with the gate applied."""
        gate = self.gate
        if self.dropout is not None and self.drops_inputs:
            x = self.dropout(x)
        x = self.multiply(x, self.layer.weight) if gate is None else gate.product(self, x)
        if self.norm is not None:
            x = self.norm(x) if gate is None else gate.normalise(self, x)
        before = gate is not None and gate.scales and self.activation == "relu6"
        x = gate(self, x) if before else x
        # in place is safe: autograd saves the inputs of the layer and of batch norm, not this output
        x = self.activated(x, inplace=not before)
        x = x if gate is None or before else gate(self, x)
        return x if self.dropout is None or self.drops_inputs else self.dropout(x)

    def activated(self, x: Tensor, inplace: bool = False) -> Tensor:
        """Return what the unit's ReLU, if it has one, makes of `x`."""
        if not self.activation:
            return x
        return F.relu6(x, inplace) if self.activation == "relu6" else F.relu(x, inplace)

    def resize(self, filters: int, inputs: int, groups: int | None = None) -> None:
        """Give the unit a new weight of shape (filters, inputs, ...), in so many groups; its values are yet to be loaded.

        A unit that has no filters stays in the network and computes nothing.
        """
        layer, weight = self.layer, self.layer.weight
        layer.weight = nn.Parameter(weight.new_empty(filters, inputs, *weight.shape[2:]))
        if self.is_convolution:
            layer.groups = layer.groups if groups is None else max(groups, 1)
            layer.out_channels, layer.in_channels = filters, inputs * layer.groups
        else:
            layer.out_features, layer.in_features = filters, inputs
        if layer.bias is not None:
            layer.bias = nn.Parameter(weight.new_empty(filters))
        if self.norm is not None:
            old, where = self.norm, {"device": weight.device, "dtype": weight.dtype}
            self.norm = type(old)(filters, old.eps, old.momentum, **where).train(self.training) if filters else None


def conv_unit(
    inputs: int,
    filters: int,
    kernel: int,
    stride: int = 1,
    activation: bool | Literal["relu6"] = True,
    dilation: int = 1,
    groups: int = 1,
) -> Unit:
    """Return a unit: a convolution without bias, padded so that it keeps the size, with batch norm."""
    padding = dilation * (kernel // 2)
    layer = nn.Conv2d(inputs, filters, kernel, stride, padding=padding, dilation=dilation, groups=groups, bias=False)
    return Unit(layer, activation=activation)


def initialise(network: nn.Module) -> None:
    """Draw fresh weights as He et al., 2015 (arXiv 1502.01852): they are normal, biases are 0, batch norm is the identity.

    The variance is 2 / (k * k * filters / groups) for a k x k convolution, as in the authors' own ResNets, and 2 / inputs
    for a linear layer. A layer that has a method `fresh` draws its own.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.numel() == 0:
            continue  # removal has left it no filter or no input
        if hasattr(module, "fresh"):
            module.fresh()
            continue
        if isinstance(module, nn.Linear | WholeMap):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.groups > 1:  # torch counts the filters of all groups, of which a channel is read by one
                module.weight.detach().mul_(module.groups**0.5)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
