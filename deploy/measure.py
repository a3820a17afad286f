"""This file times, saves and exports the smaller network that removal makes, beside the dense one."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from deploy.export import examples, export
from deploy.forms import onnx
from deploy.latency import networks
from models import Card, Network, save
from models.files import content
from models.layers import initialise
from pruning.removal import ungated
from runs.console import note
from settings.arguments import Settings, method
from settings.meaning import makes_smaller
from settings.paths import began_in
from settings.saved import counted
from training.earlier_networks import network_named
from training.experiment import Experiment

BATCHES = (1, 128)
FEW = (1, 8)  # of a detector, whose images are large


def timed(whole: Network, smaller: Network, image_size: int, device: str, check: Callable = lambda: None) -> list[dict]:
    """Return a row for each engine and batch size with latency and peak memory of both networks.

    The engines are PyTorch and, on the CPU, onnxruntime where it is installed; batches have 1 and 128 images, of a
    detector 1 and 8.
    """
    where = {"cpu": f"cpu, {torch.get_num_threads()} threads", "cuda": "cuda, by CUDA graphs"}.get(device, device)
    where += f", float32{' by TF32' if device == 'cuda' and torch.backends.cudnn.allow_tf32 else ''}, batch norm folded, medians"
    measured = {"PyTorch": []}
    batches = BATCHES if len(whole.outputs) == 1 else FEW
    for batch in batches:
        check()
        measured["PyTorch"].append(networks(whole, smaller, image_size, batch, device))
    check()
    if device == "cpu" and all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
        measured["onnxruntime"] = onnx.onnxruntime_latency(whole, smaller, image_size, batches)
    return [
        {"engine": engine, "batch": batch, **row, "where": where}
        for engine, rows in measured.items()
        for batch, row in zip(batches, rows, strict=True)
    ]


def timed_files(files: dict[str, Path], image: np.ndarray) -> list[dict]:
    """Return a row for batches of 1 and 128 images with what each .onnx file takes, by its name, in onnxruntime on the CPU.

    `image` is one of the images that the files take.
    """
    where = f"cpu, {torch.get_num_threads()} threads, batch norm folded, medians"
    rows = onnx.timed_files(files, image, BATCHES)
    return [{"engine": "onnxruntime", "batch": batch, **row, "where": where} for batch, row in zip(BATCHES, rows, strict=True)]


def save_network(run: Experiment, result: dict, path: Path) -> dict:
    """Save a run's last network as model.pt, with its settings and its result; return the file and its bytes.

    Of a smaller network "dense_bytes" are what the whole one would take in that format. Masked weights are written as zeros.
    """
    trained = remembered(run.settings, path.parent) | {
        name: result[name] for name in ("test", "dense", "left", "last") if name in result
    }
    card = card_of(run, trained)
    written = {"file": str(path), "bytes": save(path, plain(run.model), card)}
    return written | ({"dense_bytes": len(content(dense_network(run), card))} if makes_smaller(run.settings) else {})


def remembered(settings: Settings, folder: Path) -> dict:
    """Return what a file in this folder says of its run: what was asked, and where it began."""
    asked = counted(method(settings) | {"epochs": settings.training.epochs, "data_dir": settings.data.data_dir})
    return {"settings": asked, "began_in": began_in(folder)}


def card_of(run: Experiment, training: dict) -> Card:
    """Return the card of a file that holds a run's network; `training` is what it says of the training."""
    data, task = run.settings.data, run.task
    return Card(run.networks.arch, task.classes, data.image_size, *task.normalisation, training, data.fit)


def measure_and_export(run: Experiment, result: dict) -> None:
    """Add to a run's result "exports", the files of --export, and "speed": how long a smaller network takes beside the whole one.

    Raises Stopped where a signal asks for it.
    """
    settings = run.settings

    def check() -> None:
        run.stop.check("while measuring; --resume does it again")

    if makes_smaller(settings):
        note(settings, f"saved {result['file']['file']}; now measuring how long it and the dense network take")
        result["speed"] = timed(dense_network(run), run.model, settings.data.image_size, run.engine.device, check)
    result["exports"] = []
    if not settings.ending.export:
        return
    images, card, network = examples(run.task, settings), card_of(run, {}), plain(run.model)
    for path in settings.ending.export:
        check()
        result["exports"].append(export(network, path, images, card))


def dense_network(run: Experiment) -> Network:
    """Return a network of the shape that the run began with, with fresh values."""
    channels, size, _ = run.task.inputs
    options = {"classes": run.task.outputs, "channels": channels, "size": size}
    network = network_named(run.networks.arch, run.whole_shapes, **options)
    network.reshape(run.whole_shapes)
    initialise(network)
    return network.to(run.engine.device, memory_format=torch.channels_last)


@torch.no_grad()
def plain(network: Network) -> Network:
    """Return a copy without masks, whose weights are those in force: for masks on weights it computes the same."""
    copied = ungated(network).eval()
    for name, unit in network.all_units.items():
        copied.get_submodule(name).layer.weight.copy_(unit.weight_in_force)
    return copied
