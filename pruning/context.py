"""What a criterion may ask for beyond the weights. Computed when first asked for, and without leaving a trace."""

from collections.abc import Callable, Iterable
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from models import Network, Unit


class Context:
    """One scoring's surroundings.

    `groups` is the granularity's view of a weight, (groups..., weights of a group); `sample` yields batches of
    normalised images and labels, always the same ones; `seed` is that of the random criterion.
    """

    def __init__(self, network: Network, groups: Callable[[Tensor], Tensor], sample: Callable[[], Iterable], seed: int):
        self.network, self.groups, self.sample, self.seed = network, groups, sample, seed

    @cached_property
    def generator(self) -> torch.Generator:
        """A generator of this scoring's own, on the CPU: the same numbers for the same seed on every device."""
        return torch.Generator().manual_seed(self.seed)

    def gradient(self, unit: Unit) -> Tensor:
        """The cross-entropy's gradient for the unit's dense weight, of its shape: the mean over the sample."""
        return self._gradients[unit]

    @cached_property
    def _gradients(self) -> dict[Unit, Tensor]:
        network, units = self.network, list(self.network.all_units.values())
        weights = [unit.weight for unit in units]
        training, statistics = network.training, {name: b.clone() for name, b in network.named_buffers()}
        frozen = [weight for weight in weights if not weight.requires_grad]
        sums, images_seen = [torch.zeros_like(weight) for weight in weights], 0
        try:
            # batch statistics, as in training: a network that was just initialised has no others
            network.train()
            for weight in frozen:
                weight.requires_grad_(True)
            with torch.enable_grad():
                for images, labels in self.sample():
                    loss = F.cross_entropy(network(images), labels, reduction="sum")
                    for total, gradient in zip(sums, torch.autograd.grad(loss, weights), strict=True):
                        total += gradient
                    images_seen += len(labels)
        finally:
            network.train(training)
            for weight in frozen:
                weight.requires_grad_(False)
            for name, buffer in network.named_buffers():
                buffer.copy_(statistics[name])
        return {unit: total / images_seen for unit, total in zip(units, sums, strict=True)}
