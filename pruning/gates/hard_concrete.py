"""This file defines the hard-concrete gate, by which the expected number of weights is minimised (L0)."""

import math
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from models.layers import Unit
from pruning.gates.learned import Learned

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
LEAST, MOST = 1e-6, 1 - 1e-6  # of the uniform numbers
LOWEST, HIGHEST = math.log(1e-2), math.log(1e2)  # of log alpha


class HardConcrete(Learned):
    """L0 with hard-concrete gates (Louizos, Welling and Kingma, 2018, arXiv 1712.01312), on whole filters or inputs.

    A gate z in [0, 1] multiplies a filter's output behind batch norm and ReLU or, with on='inputs', what the layer reads of
    an input channel. In training, for each batch and u uniform,

        s = sigmoid((log u - log(1 - u) + log alpha) / beta),   z = clamp(s (zeta - gamma) + gamma, 0, 1)

    in evaluation z = clamp(sigmoid(log alpha) (zeta - gamma) + gamma, 0, 1). The penalty, with N training images, is

        sum of P(z != 0) (weight / N |g| + decay / 2 ||w_g||^2),   P(z != 0) = sigmoid(log alpha - beta log(-gamma / zeta))

    over the gates, where |g| counts the weights and the bias of a filter, or the weights that read an input, and w_g are its
    weights. At first log alpha is log((1 - droprate) / droprate), and noise; it stays between log 0.01 and log 100.
    ValueError for a droprate that is not between 0 and 1.
    """

    decides: Annotated[bool, "decides", "of: structured"] = True
    term = "expected_l0"
    scales = True

    def __init__(
        self,
        unit: Unit,
        *,
        on: Literal["filters", "inputs"] = "filters",
        weight: float = 0.1,
        decay: float = 0.0,
        droprate: float = 0.5,
        learning_rate: Annotated[float, "above 0"] = 1.0,
    ):
        super().__init__(unit, learning_rate)
        if not 0 < droprate < 1:
            raise ValueError(f"droprate is above 0 and below 1, not {droprate:g}")
        self.on, self.factor, self.decay = on, weight, decay
        # drawn on the CPU, so that a seed gives the same numbers on every device
        start = math.log((1 - droprate) / droprate) + 0.01 * torch.randn(len(self.pieces(unit.weight)))
        self.log_alpha = nn.Parameter(start.to(unit.weight))

    def pieces(self, weight: Tensor) -> Tensor:
        return (weight.transpose(0, 1) if self.on == "inputs" else weight).flatten(1)

    @torch.no_grad()
    def before_step(self, epochs: float, images: int) -> None:
        self.strength.fill_(self.factor / images)
        self.log_alpha.clamp_(LOWEST, HIGHEST)

    def draw(self, uniform: Tensor) -> Tensor:
        """Return the gates of training, (gates,), that these uniform numbers give."""
        s = torch.sigmoid((uniform.log() - torch.log1p(-uniform) + self.log_alpha) / BETA)
        return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def test(self) -> Tensor:
        """Return the gates of evaluation, (gates,)."""
        return (torch.sigmoid(self.log_alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def open(self) -> Tensor:
        """Return the probability that each gate is not 0, (gates,)."""
        return torch.sigmoid(self.log_alpha - BETA * math.log(-GAMMA / ZETA))

    def penalty(self) -> Tensor:
        weights, bias = self.pieces(self.unit.weight), self.unit.layer.bias
        size = weights.shape[1] + (bias is not None and self.on == "filters")
        return (self.open() * (self.strength * size + self.decay / 2 * weights.square().sum(1))).sum()

    def decide(self) -> Tensor:
        return self.test().detach() > 0

    @property
    def live(self) -> Tensor | None:
        return self.decide().to(self.log_alpha.dtype) if self.on == "filters" else None

    @property
    def reads(self) -> Tensor | None:
        return self.decide() if self.on == "inputs" else None

    def _times(self, x: Tensor) -> Tensor:
        """Return the channels of `x` times their gates."""
        uniform = LEAST + (MOST - LEAST) * torch.rand_like(self.log_alpha) if self.training else None
        gates = self.test() if uniform is None else self.draw(uniform)
        return x * gates.to(x.dtype).view(-1, *[1] * (x.dim() - 2))

    def product(self, unit: Unit, x: Tensor) -> Tensor:
        return super().product(unit, self._times(x) if self.on == "inputs" else x)

    def multiplied(self, x: Tensor) -> Tensor:
        return self._times(x) if self.on == "filters" else x

    @torch.no_grad()
    def settle(self, unit: Unit) -> None:
        if self.on == "inputs":
            unit.layer.weight *= self.test().view(1, -1, *[1] * (unit.layer.weight.dim() - 2))
        else:
            unit.scale(self.test())
