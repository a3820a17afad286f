"""This file re-implements the published KSC 2020 engine, for benchmarks/step.py only: how fast does such a program train?

It computes in float32, not compiled, on batches from a DataLoader on the host, and reads accuracy back after every step. Its
Python loops run over all filters for the mask, at every fourth step, and over all kernels for a regulariser that comes to
the constant 0.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms

import models
from models.layers import Gate


class _Masked(torch.autograd.Function):
    """mask * weight forward, the identity backward: the gradient at the masked network, applied to the dense weights."""

    @staticmethod
    def forward(ctx, weight: Tensor, mask: Tensor) -> Tensor:
        return weight * mask

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient, None


class _Gate(Gate):
    """A filter mask on the weight, before batch norm."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.register_buffer("mask", torch.ones_like(weight))

    def weight(self, weight: Tensor) -> Tensor:
        return _Masked.apply(weight, self.mask)


class _Pictures(torch.utils.data.Dataset):
    """A data set of PIL images, cropped and normalised one by one."""

    def __init__(self, pixels: Tensor, labels: Tensor):
        self.pixels, self.labels = pixels.cpu().numpy(), labels.tolist()
        steps = [transforms.RandomCrop(32, padding=4), transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


class Published:
    """The published network and its training step: rate 0.6, SGD at a learning rate of 0.2."""

    def __init__(self, arch: str, batch: int, images, device: str, workers: int = 2, rate: float = 0.6):
        self.model, self.device, self.rate, self.steps = models.build(arch).to(device), device, rate, 0
        for unit in self.model.units.values():
            unit.gate = _Gate(unit.weight)
        self.model.to(device)
        options = {"momentum": 0.9, "weight_decay": 1e-4, "foreach": False, "fused": False}
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.2, **options)
        repeats = -(-4 * batch // len(images))  # an epoch of a few batches
        pictures = _Pictures(images.pixels.repeat(repeats, 1, 1, 1), images.labels.repeat(repeats))
        self.loader = DataLoader(
            pictures, batch, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0
        )
        self.batches = iter(self.loader)

    def step(self) -> float:
        """Train on one batch; returns the loss."""
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(self.loader)
            batch = next(self.batches)
        images, labels = (part.to(self.device) for part in batch)
        self.steps += 1
        if self.steps % 4 == 0:
            self.update_masks()
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels) + 0.7 * self.regulariser()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        ranked = logits.topk(5, 1).indices == labels[:, None]
        self.accuracy = [100 * ranked[:, :k].sum().item() / len(labels) for k in (1, 5)]
        return loss.item()

    @torch.no_grad()
    def update_masks(self) -> None:
        """Keep the filters whose mean |w| is strictly above one threshold; the means are computed and sorted on the host."""
        scores = [abs(filter_.cpu().numpy()).mean() for unit in self.model.units.values() for filter_ in unit.weight]
        threshold = np.sort(scores)[int(len(scores) * self.rate)]
        remaining = iter(scores)
        for unit in self.model.units.values():
            for number in range(unit.filters):
                unit.gate.mask[number] = float(next(remaining) > threshold)

    def regulariser(self) -> float:
        """The correlation of the rows of kernels that have two rows, in detached numpy: no kernel has, so it is 0."""
        total = 0.0
        for unit in self.model.units.values():
            for filter_ in unit.weight.detach().cpu().numpy():
                for kernel in filter_:
                    if kernel.shape[0] == 2:
                        total += abs(np.corrcoef(kernel)[0, 1])
        return total
