"""This file defines the supermask, by which a network is found inside one of random weights that never change."""

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from models.layers import Unit
from pruning.gates.learned import Learned


class Supermask(Learned):
    """Trained supermasks (Zhou, Lan, Liu and Yosinski, 2019, arXiv 1905.01067), on single weights.

    All of the unit keeps the values it began with: weights, bias, batch norm's scale and shift. Each weight has a score m,
    which begins at 0 and is all that is trained. A training step draws mask ~ Bernoulli(sigmoid(m)), and the gradient for m
    is that for sigmoid(m), as if it stood in the place of the mask (straight-through):

        weight in force = mask * weight                                     with `rescale` times size / ones of this mask

    where size and ones count a layer's weights and those that are kept; the factor has no gradient. With `constant` each
    weight is sign(weight) * the population standard deviation of the layer's weights. Evaluation draws too, as published,
    but once for the whole run: by uniform numbers u that are kept, mask = [u <= sigmoid(m)]; 'thresholded' takes u = 1 / 2.
    """

    decides: Annotated[bool, "decides", "of: unstructured", "freezes"] = True
    exact = False
    by_filter = False

    def __init__(
        self,
        unit: Unit,
        *,
        rescale: bool = False,
        constant: bool = False,
        test: Literal["drawn", "thresholded"] = "drawn",
        learning_rate: Annotated[float, "above 0"] = 500.0,
    ):
        super().__init__(unit, learning_rate)
        self.rescale, self.constant = rescale, constant
        self.scores = nn.Parameter(torch.zeros_like(unit.weight))
        # drawn on the CPU, so that a seed gives the same numbers on every device
        uniform = torch.rand(unit.weight.shape) if test == "drawn" else torch.full(unit.weight.shape, 0.5)
        self.register_buffer("uniform", uniform.to(unit.weight))
        unit.requires_grad_(False)

    def pieces(self, weight: Tensor) -> Tensor:
        return weight.unsqueeze(-1)

    def before_step(self, epochs: float, images: int) -> None:
        """Nothing here depends on how far the run is."""

    def masked(self, weight: Tensor, mask: Tensor) -> Tensor:
        """Return the weight in force under a mask of 0 and 1."""
        weight = weight.detach()
        if self.constant:
            weight = weight.sign() * weight.std(correction=0)
        if self.rescale:
            weight = weight * (mask.numel() / mask.detach().sum().clamp_min(1))
        return weight * mask

    def draw(self) -> Tensor:
        """Return a mask of training, whose gradient is that of sigmoid(scores)."""
        kept = torch.sigmoid(self.scores)
        return torch.bernoulli(kept.detach()) + (kept - kept.detach())

    @torch.no_grad()
    def decide(self) -> Tensor:
        return self.uniform <= torch.sigmoid(self.scores)

    @property
    def live(self) -> Tensor:
        return self.decide().flatten(1).any(1).to(self.scores.dtype)

    def weight(self, weight: Tensor) -> Tensor:
        """The weight of evaluation."""
        return self.masked(weight, self.decide().to(weight.dtype))

    def product(self, unit: Unit, x: Tensor) -> Tensor:
        if not self.training:
            return super().product(unit, x)
        return unit.multiply(x, self.masked(unit.layer.weight, self.draw()))

    @torch.no_grad()
    def settle(self, unit: Unit) -> None:
        unit.layer.weight.copy_(self.weight(unit.layer.weight))
        unit.requires_grad_(True)
