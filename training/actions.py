"""What is done with a network between stages of training."""

from collections.abc import Iterable

import torch

from models import Network
from models.numerics import without_tf32
from pruning.removal import Removal
from settings.errors import Failed
from tasks.images import Dataset
from training.evaluation import BATCH

# of the largest output; float32 sums of thousands of terms, in another order
TOLERANCE = 1e-4


@torch.no_grad()
def recalibrate(model: Network, batches: Iterable, autocast) -> None:
    """Batch norm's statistics from these batches alone, each with the same weight."""
    norms = [unit.norm for unit in model.all_units.values() if unit.norm is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    model.train()
    for images, _ in batches:
        with autocast():
            model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@torch.no_grad()
def take_out(model: Network, dataset: Dataset, batches: int | None = None) -> tuple[Removal, Network, dict]:
    """Remove the masked filters and compare both networks on the test images, in float32.

    Failed if the outputs differ although every mask is on a unit's output; at the published placement they do.
    """
    removal = Removal(model)
    smaller = removal.compact().eval()
    model.eval()
    largest = scale = torch.zeros(())
    images_seen = same = 0
    with without_tf32():
        for number, (pixels, _) in enumerate(dataset.ordered(dataset.test, BATCH)):
            if number == batches:
                break
            masked, compact = model(pixels), smaller(pixels)
            # torch.maximum, unlike max, lets nothing that is not a number pass
            largest = torch.maximum(largest, (masked - compact).abs().max().cpu())
            scale = torch.maximum(scale, masked.abs().max().cpu())
            same += int((masked.argmax(1) == compact.argmax(1)).sum())
            images_seen += len(pixels)
    largest, scale = float(largest), float(scale)
    if removal.exact and not largest <= TOLERANCE * scale:
        raise Failed(f"removal changed the outputs by {largest:.2e} of {scale:.2e}: please report this; no file was written")
    record = {"exact": removal.exact, "difference": largest, "largest_output": scale, "same": same, "images": images_seen}
    return removal, smaller, record
