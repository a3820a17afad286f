"""This file opens what --evaluate and --predict name: a model.pt, an .onnx file, a checkpoint, or a run's folder."""

from pathlib import Path

import torch

import models
from deploy.onnx_file import OnnxNetwork
from settings.earlier import settings_of
from settings.errors import Refused
from settings.files import Damaged, Missing
from settings.paths import model_of, network_of


def opened(path: str) -> models.Network | OnnxNetwork:
    """Return the network that a path names, in evaluation mode, which has its card as `.card`.

    Of a run's folder that is the run's last network: its model.pt or, where it has none or has not ended, that of its last
    checkpoint, with its masks. Refused as by the readers, and for a checkpoint that does not say what its data was.
    """
    if Path(path).suffix == ".onnx":
        return OnnxNetwork(path)
    file = network_of(path)
    if Path(path).is_dir() and file != model_of(path):
        return _of_checkpoint(file, path)
    try:
        return models.load(file)
    except (Missing, Damaged):
        raise
    except Refused as no_model:
        try:
            return _of_checkpoint(file, path)
        except Refused as no_checkpoint:
            raise (no_model if "no checkpoint" in str(no_checkpoint) else no_checkpoint) from None


def _of_checkpoint(file: Path, path: str) -> models.Network:
    """Return the network of the checkpoint that `path` names, with its masks. Refused as by its reader, and without classes."""
    from training.earlier_networks import read_network  # with pruning code, which a model.pt does not need

    network, _, known = read_network(file)
    if known.classes is None or known.mean is None:
        raise Refused(f"'{file}' is of an older run, which does not say how images are normalised: --resume it first")
    asked = settings_of(Path(path)) or known.settings  # the first says where its data is now
    card = {"classes": known.classes, "image_size": known.side, "mean": known.mean, "std": known.std}
    network.card = models.Card(known.settings["arch"], **card, training={"settings": asked}, fit=asked.get("fit", "crop"))
    return network.to(memory_format=torch.channels_last).eval()


def without_masks(network: models.Network) -> models.Network:
    """Return the network as a file can hold it: masked weights are zeros. Refused where whole filters are under masks."""
    gates = [unit.gate for unit in network.all_units.values() if unit.gate is not None]
    if not gates:
        return network
    if any(gate.by_filter for gate in gates):
        raise Refused("--export: whole filters of this network are under masks: take them out first, by --resume RUN --compact")
    from deploy.measure import plain

    return plain(network)
