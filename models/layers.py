"""What every network here is made of: units with a slot for a gate, and residual joints."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Unit(nn.Module):
    """layer -> batch norm -> ReLU, the last two optional, with an empty slot for a gate.

    `layer` is a Conv2d or a Linear; its outputs are the unit's filters. A gate, if one is put into the slot, offers
    `weight(w)`, the weight in force; `product(unit, x)`, the layer's product; `normalise(unit, x)`, batch norm; and a call
    on the unit and its output.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear, norm: bool = True, activation: bool = True):
        super().__init__()
        self.layer = layer
        width = layer.weight.shape[0]
        kind = nn.BatchNorm2d if isinstance(layer, nn.Conv2d) else nn.BatchNorm1d
        self.norm = kind(width) if norm else None
        self.activation = activation
        self.gate = None
        self.in_place = False

    @property
    def is_convolution(self) -> bool:
        return isinstance(self.layer, nn.Conv2d)

    @property
    def filters(self) -> int:
        return self.layer.weight.shape[0]

    @property
    def weight(self) -> Tensor:
        """The dense weight, (filters, inputs, height, width) or (filters, inputs)."""
        return self.layer.weight

    @property
    def weight_in_force(self) -> Tensor:
        """The weight that the forward pass multiplies with: the dense one unless a weight mask is on."""
        return self.layer.weight if self.gate is None else self.gate.weight(self.layer.weight)

    @property
    def live(self) -> Tensor | None:
        """Which filters are in force, (filters,) of 0 and 1, or None where nothing is masked by filters."""
        return None if self.gate is None else self.gate.live

    def alive(self, dtype: torch.dtype) -> Tensor:
        """Which filters are in force, (filters,) of 1 and 0 in any case: the caller's own, on the weight's device."""
        if self.live is None:
            return torch.ones(self.filters, dtype=dtype, device=self.layer.weight.device)
        return self.live.detach().to(dtype, copy=True)

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's product with another weight of the same shape."""
        layer = self.layer
        if not self.is_convolution:
            return F.linear(x, weight, layer.bias)
        if weight.numel() == 0:
            # without an input or a filter there is nothing to multiply: what is left is the bias, if anything
            sizes = zip(x.shape[2:], layer.kernel_size, layer.stride, layer.padding, strict=True)
            y = x.new_zeros(
                x.shape[0], weight.shape[0], *((n + 2 * padding - k) // stride + 1 for n, k, stride, padding in sizes)
            )
            return y if layer.bias is None else y + layer.bias.view(-1, 1, 1)
        return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate
        x = self.multiply(x, self.layer.weight) if gate is None else gate.product(self, x)
        if self.norm is not None:
            x = self.norm(x) if gate is None else gate.normalise(self, x)
        if self.activation:
            # nothing keeps what it overwrites: the gradients of layer and batch norm are of their inputs
            x = F.relu(x, inplace=True)
        return x if gate is None else gate(self, x)

    def resize(self, filters: int, inputs: int) -> None:
        """Another width, the values yet to be loaded. A unit without filters keeps its place and computes nothing."""
        weight = self.layer.weight
        self.layer.weight = nn.Parameter(weight.new_empty(filters, inputs, *weight.shape[2:]))
        if self.is_convolution:
            self.layer.out_channels, self.layer.in_channels = filters, inputs
        else:
            self.layer.out_features, self.layer.in_features = filters, inputs
        if self.layer.bias is not None:
            self.layer.bias = nn.Parameter(weight.new_empty(filters))
        if self.norm is not None:
            old, place = self.norm, {"device": weight.device, "dtype": weight.dtype}
            self.norm = type(old)(filters, old.eps, old.momentum, **place).train(self.training) if filters else None

    def fold(self) -> None:
        """Batch norm's evaluation into the layer: W' = W * s, b' = (b - mean) * s + beta, s = gamma / sqrt(var + eps)."""
        if self.norm is not None:
            norm, layer = self.norm, self.layer
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            bias = -norm.running_mean if layer.bias is None else layer.bias - norm.running_mean
            layer.bias = nn.Parameter(bias * scale + norm.bias)
            layer.weight = nn.Parameter(layer.weight * scale.view(-1, *[1] * (layer.weight.dim() - 1)))
            self.norm = None
        self.in_place = True

    def fill_up(self, filters: int, inputs: int) -> None:
        """Zero rows and columns up to so many filters and inputs, in a folded unit. One that reads nothing still does."""
        layer, (rows, columns) = self.layer, self.layer.weight.shape[:2]
        weight = layer.weight.new_zeros(filters, inputs if columns else 0, *layer.weight.shape[2:])
        weight[:rows, :columns] = layer.weight
        bias = layer.weight.new_zeros(filters)
        if layer.bias is not None:
            bias[:rows] = layer.bias
        layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)


def conv_unit(inputs: int, filters: int, kernel: int, stride: int = 1, activation: bool = True) -> Unit:
    """A convolution without bias, padded to keep the size, with batch norm."""
    layer = nn.Conv2d(inputs, filters, kernel, stride, padding=kernel // 2, bias=False)
    return Unit(layer, activation=activation)


def initialise(network: nn.Module) -> None:
    """He et al., 2015 (arXiv 1502.01852): normal weights, biases 0, batch norm the identity.

    The variance is 2 / (k * k * filters) for a k x k convolution, as in the authors' own ResNets, and 2 / inputs for a
    linear layer.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.numel() == 0:
            continue  # emptied by removal
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(module.bias)
