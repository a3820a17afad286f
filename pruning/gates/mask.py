"""This file defines masks: buffers of 0 and 1 in a unit's gate slot, on its output or on its weight.

While a mask moves, the gradient is straight-through (Lin et al., 2020, arXiv 2006.07253): it is taken at the masked
network and applied to the dense weights, W <- W - lr * g(m * W), so that what is cut keeps learning and may return.
Once a mask is fixed (`straight_through = False`) it is a plain product.
"""

import torch
from torch import Tensor

from models.layers import Gate


class _StraightThrough(torch.autograd.Function):
    """Forward it is mask * value; backward it is the identity, as if nothing were masked."""

    @staticmethod
    def forward(ctx, value: Tensor, mask: Tensor) -> Tensor:
        return value * mask

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient, None


class Mask(Gate):
    """A mask has the buffer `mask`, of 0 and 1, and knows whether it still moves (`straight_through`).

    `joint` says how residual joints take their ReLU's derivative at exactly 0 while masks move, "zero" or "right", and
    `scored` by which maps criteria see a unit that writes a stream, the "joint"'s or its "own"; see `gates/output.py`. While
    masks move, filters that are `masked_behind` are masked by the unit that is tied to them, whose mask is `for_both`.
    """

    joint = "zero"
    scored = "joint"
    masked_behind = for_both = False
    soft = False  # whether masks are made behind every epoch too, so that what is evaluated is masked as it then is

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

    def decide(self) -> Tensor:
        return self.mask.bool()

    def keep_initial(self, weight: Tensor) -> None:
        """Keep a copy of the unit's weight as `initial`, for a criterion that compares with it; a checkpoint has it too."""
        self.register_buffer("initial", weight.detach().clone())

    def overwrite(self, unit) -> None:
        """Change the unit's own weights, after a new mask was set; most masks leave them as they are."""

    @property
    def _passes(self) -> bool:
        """Whether gradients now pass as if nothing were masked."""
        # in this order a captured evaluation does not depend on whether masks still move
        return torch.is_grad_enabled() and self.straight_through

    def _apply_to(self, value: Tensor, mask: Tensor) -> Tensor:
        """Return value * mask, straight-through while the mask moves."""
        mask = mask.to(value.dtype)
        return _StraightThrough.apply(value, mask) if self._passes else value * mask
