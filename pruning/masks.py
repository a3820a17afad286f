"""Masks: buffers of 0 and 1 in a unit's gate slot, on its output or on its weight, with the gradient of the method.

While a mask moves, the gradient is straight-through (Lin et al., 2020, arXiv 2006.07253): it is taken at the masked
network and applied to the dense weights, W <- W - lr * g(m * W), so that what is cut keeps learning and may return.
Once a mask is fixed (`straight_through = False`) it is a plain product.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_backward = torch.ops.aten.convolution_backward
_norm_backward = torch.ops.aten.native_batch_norm_backward


class _StraightThrough(torch.autograd.Function):
    """mask * value forward, the identity backward."""

    @staticmethod
    def forward(ctx, value: Tensor, mask: Tensor) -> Tensor:
        return value * mask

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient, None


class _GatedConvolution(torch.autograd.Function):
    """A convolution whose masked filters learn but send nothing upstream.

    Behind a straight-through gate the masked filters' output has a gradient. It is for their own weights only: the
    gradient to the input is that of the network without them. conv_input(m * g, W) = conv_input(g, m * W), so masking
    the small weight does it, without another pass over the activations.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, mask: Tensor, stride, padding) -> Tensor:
        ctx.save_for_backward(x, weight, mask)
        ctx.geometry = (stride, padding, (1, 1), False, (0, 0), 1)
        return F.conv2d(x, weight, None, stride, padding)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, weight, mask = ctx.saved_tensors
        # the weight's own gradient does not depend on the weight
        masked = weight * mask.to(weight.dtype).view(-1, 1, 1, 1)
        wanted = (*ctx.needs_input_grad[:2], False)
        for_x, for_weight, _ = _backward(gradient, x, masked, None, *ctx.geometry, wanted)
        return for_x, for_weight, None, None, None


class _GatedNorm(torch.autograd.Function):
    """Batch norm whose masked filters give 0, while their gradient is that of the whole batch norm.

    What mask * norm(x) is with a straight-through mask, but masked where it is small: at the scale and shift, not in
    another pass over the activations.
    """

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, shift: Tensor, mask: Tensor, mean: Tensor, variance: Tensor, momentum, eps):
        y, batch_mean, inverse = torch.native_batch_norm(x, scale * mask, shift * mask, mean, variance, True, momentum, eps)
        ctx.save_for_backward(x, scale, batch_mean, inverse)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, scale, batch_mean, inverse = ctx.saved_tensors
        wanted = (ctx.needs_input_grad[0], True, True)
        found = _norm_backward(gradient, x, scale, None, None, batch_mean, inverse, True, ctx.eps, wanted)
        return *found, None, None, None, None, None


class Mask(nn.Module):
    """What every mask is: the buffer `mask`, and whether it still moves (`straight_through`)."""

    def __init__(self, shape, device=None):
        super().__init__()
        self.register_buffer("mask", torch.ones(shape, device=device))
        self.straight_through = False

    @torch.no_grad()
    def set(self, mask: Tensor) -> None:
        """Put a mask in force, in place. ValueError for another shape or a value other than 0 and 1."""
        if mask.shape != self.mask.shape:
            raise ValueError(f"a mask of shape {tuple(self.mask.shape)} is needed, not {tuple(mask.shape)}")
        if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
            raise ValueError("a mask holds 0 and 1 only")
        self.mask.copy_(mask)

    def normalise(self, unit, x: Tensor) -> Tensor:
        """Batch norm of a unit's product."""
        return unit.norm(x)

    @property
    def _passes(self) -> bool:
        """Whether a gradient is to pass as if nothing were masked."""
        # in this order a captured evaluation does not depend on whether masks still move
        return torch.is_grad_enabled() and self.straight_through

    def _apply_to(self, value: Tensor, mask: Tensor) -> Tensor:
        mask = mask.to(value.dtype)
        return _StraightThrough.apply(value, mask) if self._passes else value * mask


class OutputGate(Mask):
    """A filter mask, (filters,), on the unit's output: behind batch norm, and behind the ReLU if the unit has one.

    There, masked equals removed, in evaluation and in training, and batch norm's statistics stay those of the filter.
    """

    def __init__(self, filters: int, device=None):
        super().__init__((filters,), device)

    @property
    def live(self) -> Tensor:
        return self.mask

    def weight(self, weight: Tensor) -> Tensor:
        return weight

    def product(self, unit, x: Tensor) -> Tensor:
        weight, layer = unit.layer.weight, unit.layer
        if not self._passes:
            return unit.multiply(x, weight)
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(dtype), weight.to(dtype)
        y = _GatedConvolution.apply(x, weight, self.mask, layer.stride, layer.padding)
        return y if layer.bias is None else y + layer.bias.view(-1, 1, 1)

    def normalise(self, unit, x: Tensor) -> Tensor:
        norm = unit.norm
        if not self._at_norm(unit):
            return norm(x)
        if norm.training:
            norm.num_batches_tracked.add_(1)
        # without a momentum it averages over all batches
        momentum = norm.momentum if norm.momentum is not None else 1 / norm.num_batches_tracked.item()
        if self._passes:
            return _GatedNorm.apply(x, norm.weight, norm.bias, self.mask, norm.running_mean, norm.running_var, momentum, norm.eps)
        scale, shift = norm.weight * self.mask, norm.bias * self.mask
        return F.batch_norm(x, norm.running_mean, norm.running_var, scale, shift, norm.training, momentum, norm.eps)

    def _at_norm(self, unit) -> bool:
        """Whether batch norm's scale and shift take the mask, which costs nothing; else it is multiplied in.

        A ReLU behind a straight-through mask must see what is masked, or it stops the gradient. A compiler fuses the
        multiplication anyway.
        """
        if unit.norm is None or torch.compiler.is_compiling():
            return False
        return not self._passes or (unit.norm.training and not unit.activation)

    def multiplied(self, x: Tensor) -> Tensor:
        """The mask multiplied into a unit's output."""
        return self._apply_to(x, self.mask.view(-1, *[1] * (x.dim() - 2)))

    def forward(self, unit, x: Tensor) -> Tensor:
        return x if self._at_norm(unit) else self.multiplied(x)


class WeightMask(Mask):
    """A mask on the layer's weight: one entry a filter, (filters,), or one a weight, of the weight's shape.

    By filters this is the published placement, before batch norm: a masked filter has variance 0 there, so that its
    straight-through gradient is multiplied by 1 / sqrt(eps) = 316, and batch norm's bias still passes.
    """

    @property
    def live(self) -> Tensor:
        return self.mask if self.mask.dim() == 1 else self.mask.flatten(1).amax(1)

    def weight(self, weight: Tensor) -> Tensor:
        mask = self.mask if self.mask.dim() > 1 else self.mask.view(-1, *[1] * (weight.dim() - 1))
        return self._apply_to(weight, mask)

    def product(self, unit, x: Tensor) -> Tensor:
        return unit.multiply(x, self.weight(unit.layer.weight))

    def multiplied(self, x: Tensor) -> Tensor:
        return x

    def forward(self, unit, x: Tensor) -> Tensor:
        return x
