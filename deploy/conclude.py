"""After the last mask: batch norm measured anew, filters taken out and the outputs compared, the result timed and saved."""

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

import torch

import data
from deploy.export import export, onnxruntime_latency
from deploy.latency import networks
from evaluation import BATCH
from models import Card, Network, build, save
from models.files import content
from models.layers import without_tf32
from output import note
from pruning.removal import Removal

BATCHES = (1, 128)
# of the largest output; float32 sums of thousands of terms, in another order
TOLERANCE = 1e-4


class RemovalError(Exception):
    """The smaller network is not the same function."""


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
def take_out(model: Network, dataset: data.Dataset, batches: int | None = None) -> tuple[Removal, Network, dict]:
    """Remove the masked filters and compare both networks on the test images, in float32.

    RemovalError if the outputs differ although every mask is on a unit's output; at the published placement they do.
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
        raise RemovalError(
            f"removal changed the outputs by {largest:.2e} of {scale:.2e}: please report this; no file was written"
        )
    record = {"exact": removal.exact, "difference": largest, "largest_output": scale, "same": same, "images": images_seen}
    return removal, smaller, record


def timed(whole: Network, smaller: Network, image_size: int, device: str, check: Callable = lambda: None) -> list[dict]:
    """Latency and peak memory of both, in PyTorch and, on the CPU where it is there, in onnxruntime; batches of 1 and 128."""
    where = {"cpu": f"cpu, {torch.get_num_threads()} threads", "cuda": "cuda, by CUDA graphs"}.get(device, device)
    where += f", float32{' by TF32' if device == 'cuda' and torch.backends.cudnn.allow_tf32 else ''}, batch norm folded, medians"
    measured = {"PyTorch": []}
    for batch in BATCHES:
        check()
        measured["PyTorch"].append(networks(whole, smaller, image_size, batch, device))
    check()
    if device == "cpu" and all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
        measured["onnxruntime"] = onnxruntime_latency(whole, smaller, image_size, BATCHES)
    return [
        {"engine": engine, "batch": batch, **row, "where": where}
        for engine, rows in measured.items()
        for batch, row in zip(BATCHES, rows, strict=True)
    ]


def write(path: Path, whole: Network, smaller: Network, card: Card) -> dict:
    """Save the smaller network; its size on disk and that of the whole one in the same format."""
    return {"file": str(path), "bytes": save(path, smaller, card), "dense_bytes": len(content(whole, card))}


def measure_and_export(run, result: dict, check: Callable) -> None:
    """Add to an experiment's result how long both networks take, and the exports; `check` is called before each."""
    settings = run.settings
    note(settings, f"saved {result['file']['file']}; now measuring how long it and the dense network take")
    result["speed"] = timed(dense_network(run), run.model, settings.image_size, settings.device, check)
    sample = next(run.dataset.ordered(run.dataset.test, 16))[0]
    result["exports"] = []
    for path in settings.export or ():
        check()
        result["exports"].append(export(run.model, path, sample))


def dense_network(run) -> Network:
    """The network that an experiment began with, but for its values."""
    network = build(run.settings.arch, classes=len(run.dataset.classes))
    return network.to(run.settings.device, memory_format=torch.channels_last)
