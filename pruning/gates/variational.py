"""This file defines the gate of sparse variational dropout, which gives each weight a noise of its own."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import Unit
from pruning.gates.learned import Learned

K1, K2, K3 = 0.63576, 1.87320, 1.48695
LARGEST = 8.0  # of |log alpha|
TINY = 1e-8  # what keeps a logarithm and a root away from 0


class Variational(Learned):
    """Sparse variational dropout (Molchanov, Ashukha and Vetrov, 2017, arXiv 1701.05369), on single weights.

    Each weight is normal around its value, with variance sigma^2 = alpha weight^2; what is learned is log sigma^2. A step
    draws the layer's product instead (local reparameterisation): for an input x its mean is x * W, its variance
    x^2 * (alpha W^2). In evaluation a weight with log alpha of at least `threshold` is 0, and the others have no noise;
    with `train_clip` those are 0 in training too. The penalty, with N training images, is `weight` / N times the sum of

        KL = k1 - k1 sigmoid(k2 + k3 log alpha) + log(1 + 1 / alpha) / 2

    It grows from 0 at epoch `begin` to all of it at epoch `full`: without that, everything would be cut before anything is
    learned. ValueError if it were full before it begins.
    """

    decides: Annotated[bool, "decides", "of: unstructured"] = True
    exact = False
    by_filter = False
    term = "kl"

    def __init__(
        self,
        unit: Unit,
        *,
        weight: float = 1.0,
        begin: Annotated[float, "epochs"] = 5.0,
        full: float = 20.0,
        threshold: float = 3.0,
        train_clip: bool = False,
        learning_rate: float = 50.0,
    ):
        super().__init__(unit, learning_rate)
        if full < begin:
            raise ValueError(f"the penalty cannot be full at epoch {full:g}, before it begins at {begin:g}")
        self.factor, self.begin, self.full = weight, begin, full
        self.threshold, self.train_clip = threshold, train_clip
        self.log_sigma2 = nn.Parameter(torch.full_like(unit.weight, -10.0))

    def pieces(self, weight: Tensor) -> Tensor:
        return weight.unsqueeze(-1)

    def log_alpha(self, weight: Tensor) -> Tensor:
        """Return log alpha of each weight, between -8 and 8, in the weight's shape."""
        return (self.log_sigma2 - torch.log(weight.square() + TINY)).clamp(-LARGEST, LARGEST)

    @staticmethod
    def divergence(log_alpha: Tensor) -> Tensor:
        """Return KL of each weight, by the approximation above; it falls to 0 as log alpha grows."""
        return K1 - K1 * torch.sigmoid(K2 + K3 * log_alpha) + 0.5 * F.softplus(-log_alpha)

    def warmth(self, epochs: float) -> float:
        """Return which part of the penalty is in force, 0 to 1, so many epochs after the first step."""
        if epochs >= self.full:
            return 1.0
        return max(epochs - self.begin, 0.0) / (self.full - self.begin)

    def before_step(self, epochs: float, images: int) -> None:
        self.strength.fill_(self.factor * self.warmth(epochs) / images)

    def penalty(self) -> Tensor:
        return self.strength * self.divergence(self.log_alpha(self.unit.weight)).sum()

    @torch.no_grad()
    def decide(self) -> Tensor:
        return self.log_alpha(self.unit.weight) < self.threshold

    @property
    def live(self) -> Tensor:
        return self.decide().flatten(1).any(1).to(self.log_sigma2.dtype)

    def weight(self, weight: Tensor) -> Tensor:
        """The weight of evaluation."""
        return weight * self.decide().to(weight.dtype)

    def product(self, unit: Unit, x: Tensor) -> Tensor:
        if not self.training:
            return super().product(unit, x)
        weight = self.weight(unit.weight) if self.train_clip else unit.weight
        variances = self.log_alpha(unit.weight).exp() * weight.square()
        mean, variance = unit.multiply(x, weight), unit.multiply(x.square(), variances, with_bias=False)
        # drawn in the order of memory, seven times as fast as randn_like where that is not the order of the dimensions
        noise = torch.randn(mean.numel(), dtype=mean.dtype, device=mean.device).as_strided(mean.shape, mean.stride())
        return mean + (variance + TINY).sqrt() * noise

    @torch.no_grad()
    def settle(self, unit: Unit) -> None:
        unit.layer.weight.copy_(self.weight(unit.layer.weight))
