"""This file compares the masked network with the one whose filters were taken out, before the smaller one is kept."""

import torch

from models.network import Network
from models.numerics import without_tf32
from settings.errors import Failed
from tasks import Task
from training.evaluation import images_at_once

# of the largest output: what float32 sums of thousands of terms may differ by when their order changes
TOLERANCE = 1e-4


@torch.no_grad()
def compare(masked: Network, smaller: Network, task: Task, *, exact: bool, batches: int | None = None) -> dict:
    """Compare two networks' outputs on the test images, in float32; `batches` ends it early.

    Returns plain values: the largest difference, the largest output, and on how many of the images both predict the same.
    Raises Failed if the outputs differ by more than 1e-4 of the largest one although removal was `exact`.
    """
    masked.eval()
    smaller.eval()
    difference = largest = torch.zeros(())
    images = same = 0
    with without_tf32():
        for number, (inputs, _) in enumerate(task.ordered(task.test, images_at_once(task))):
            if number == batches:
                break
            before, after_removal = task.comparable(masked, inputs), task.comparable(smaller, inputs)
            for wanted, got in zip(before, after_removal, strict=True):
                # torch.maximum, unlike max, keeps what is not a number, so that it is noticed
                difference = torch.maximum(difference, (wanted - got).abs().max().cpu())
                largest = torch.maximum(largest, wanted.abs().max().cpu())
            same += task.agreements(before, after_removal)
            images += len(inputs)
    difference, largest = float(difference), float(largest)
    if exact and not difference <= TOLERANCE * largest:
        raise Failed(f"removal changed the outputs by {difference:.2e} of {largest:.2e}: please report this; no file was written")
    return {"exact": exact, "difference": difference, "largest_output": largest, "same": same, "images": images}
