"""The masked network and the one without its filters are compared on every test image, before the smaller one is kept."""

import torch

from models.network import Network
from models.numerics import without_tf32
from settings.errors import Failed
from tasks import Task
from training.evaluation import BATCH

# of the largest output; float32 sums of thousands of terms, in another order
TOLERANCE = 1e-4


@torch.no_grad()
def compare(masked: Network, smaller: Network, task: Task, *, exact: bool, batches: int | None = None) -> dict:
    """The largest difference of two networks' outputs on the test images, in float32; `batches` ends it early.

    Returns plain values: the difference, the largest output, and on how many of the images both predict the same.
    Failed if the outputs differ by more than 1e-4 of the largest one although they should be `exact`ly the same.
    """
    masked.eval()
    smaller.eval()
    difference = largest = torch.zeros(())
    images = same = 0
    with without_tf32():
        for number, (inputs, _) in enumerate(task.ordered(task.test, BATCH)):
            if number == batches:
                break
            wanted, got = task.comparable(masked, inputs), task.comparable(smaller, inputs)
            for first, second in zip(wanted, got, strict=True):
                # torch.maximum, unlike max, lets nothing that is not a number pass
                difference = torch.maximum(difference, (first - second).abs().max().cpu())
                largest = torch.maximum(largest, first.abs().max().cpu())
            same += task.agreements(wanted, got)
            images += len(inputs)
    difference, largest = float(difference), float(largest)
    if exact and not difference <= TOLERANCE * largest:
        raise Failed(f"removal changed the outputs by {difference:.2e} of {largest:.2e}: please report this; no file was written")
    return {"exact": exact, "difference": difference, "largest_output": largest, "same": same, "images": images}
