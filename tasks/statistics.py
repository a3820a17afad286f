"""This file measures the mean and the deviation of the channels of images."""

import torch
from torch import Tensor

from tasks.streams import Streamed, chosen_evenly

MEASURED = 5000  # so many pictures that are read from their files say the mean and the deviation of all


def statistics(pixels: Tensor | Streamed) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of each channel of bytes (n, height, width, channels), exactly.

    Of pictures that are read from their files at most MEASURED are counted, evenly through all of them.
    """
    if isinstance(pixels, Tensor):
        return _from_counts(_counts(pixels))
    sample = pixels[chosen_evenly(len(pixels), MEASURED)]
    parts = [slice(start, start + 100) for start in range(0, len(sample), 100)]
    return _from_counts(sum(_counts(part.cpu()) for part in sample.batches(parts)))


def _counts(pixels: Tensor) -> Tensor:
    """Return how often each channel has each value, (channels, 256)."""
    return torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in pixels.unbind(-1)])


def _from_counts(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of each channel."""
    values = torch.arange(256, dtype=torch.float64)
    shares = counts.double()
    shares = shares / shares.sum(1, keepdim=True)
    mean = shares @ values
    variance = shares @ values.square() - mean.square()
    return mean.float(), variance.sqrt().clamp_min(1.0).float()
