"""This file defines the filter mask on a unit's output, behind batch norm, where masked equals removed."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models.numerics import computable
from pruning.gates.mask import Mask

_backward = torch.ops.aten.convolution_backward
_norm_backward = torch.ops.aten.native_batch_norm_backward


class _GatedConvolution(torch.autograd.Function):
    """A convolution whose masked filters learn but send nothing upstream.

    Behind a straight-through gate the masked filters' output has a gradient. It is for their own weights only: the
    gradient to the input is that of the network without them. conv_input(m * g, W) = conv_input(g, m * W), so masking
    the small weight does it, without another pass over the activations.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, mask: Tensor, stride, padding, dilation, groups) -> Tensor:
        ctx.save_for_backward(x, weight, mask)
        ctx.geometry = (stride, padding, dilation, False, (0, 0), groups)
        return F.conv2d(x, weight, None, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, weight, mask = ctx.saved_tensors
        # the weight's own gradient does not depend on the weight
        masked = weight * mask.to(weight.dtype).view(-1, 1, 1, 1)
        wanted = (*ctx.needs_input_grad[:2], False)
        for_x, for_weight, _ = _backward(gradient, x, masked, None, *ctx.geometry, wanted)
        return for_x, for_weight, None, None, None, None, None


class _GatedNorm(torch.autograd.Function):
    """Batch norm whose masked filters give 0, while their gradient is that of the whole batch norm.

    It equals mask * norm(x) with a straight-through mask. The mask is applied where tensors are small, at the scale and
    the shift, and not in another pass over the activations.
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
        gradients = _norm_backward(gradient, x, scale, None, None, batch_mean, inverse, True, ctx.eps, wanted)
        return *gradients, None, None, None, None, None


class Output(Mask):
    """A filter mask on the unit's output, behind batch norm and ReLU: masked equals removed.

    `shape` is (filters,), or the number of filters. The mask acts in evaluation and in training alike, and batch norm's
    statistics stay those of the filter.

    Where all filters that write a channel of a residual stream are cut, the joint's ReLU sees exactly 0. With joint='zero'
    its derivative there is 0, so that these filters do not learn; with joint='right' it is taken from the right while masks
    move, so that they learn as all others that are cut. What is live has the same gradient with both.

    A unit that writes a stream has no ReLU of its own. With scored='joint' criteria see the stream behind the joint's ReLU,
    as the code of HRank does; of a channel that is cut as a whole they see 0. With scored='own' they see the ReLU of the
    unit's own output, as if it alone were added, and gradients as with joint='right', so that a cut filter has a score of
    its own.

    A depthwise filter is cut together with the channel that it reads. While masks move, the one mask behind both is in force:
    so both have a gradient and go on learning. Two masks would stop it twice, as the second filter then reads only zeros.
    """

    def __init__(
        self,
        shape,
        device=None,
        *,
        joint: Literal["zero", "right"] = "zero",
        scored: Literal["joint", "own"] = "joint",
    ):
        super().__init__(shape, device)
        self.joint, self.scored = joint, scored

    @property
    def live(self) -> Tensor:
        return self.mask

    def product(self, unit, x: Tensor) -> Tensor:
        weight, layer = unit.layer.weight, unit.layer
        if not self._passes or self.for_both:  # what is read for both is sent back to the first filter
            return unit.multiply(x, weight)
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(dtype), weight.to(dtype)
        x, stride, padding = computable(x, weight, layer.stride, layer.padding)
        y = _GatedConvolution.apply(x, weight, self.mask, stride, padding, layer.dilation, layer.groups)
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
        """Say whether batch norm's scale and shift take the mask, which costs nothing; otherwise it is multiplied in.

        A ReLU behind a straight-through mask must see what is masked, or it stops the gradient. A compiler fuses the
        multiplication anyway.
        """
        if unit.norm is None or torch.compiler.is_compiling() or (self._passes and self.masked_behind):
            return False
        return not self._passes or (unit.norm.training and not unit.activation)

    def multiplied(self, x: Tensor) -> Tensor:
        if self._passes and self.masked_behind:
            return x
        return self._apply_to(x, self.mask.view(-1, *[1] * (x.dim() - 2)))

    def forward(self, unit, x: Tensor) -> Tensor:
        return x if self._at_norm(unit) else self.multiplied(x)
