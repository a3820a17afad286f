"""This file writes and reads model.pt: a network with all that is needed to use it, rebuilt without any pruning code."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch

from models.network import Network
from runs.storage import packed, read_tensors, replace
from settings.errors import Refused
from settings.registry import NETWORKS

FORMAT = 1


@dataclass
class Card:
    """A card says what a network is and where it comes from, as plain values.

    Pixels are bytes; they are normalised by `mean` and `std`, which have one entry a channel. `training` is what the run
    was asked and what came of it. `fit` says how pictures become square; files from before it was a choice were cropped.
    """

    arch: str
    classes: list[str]
    image_size: int
    mean: list[float]
    std: list[float]
    training: dict = field(default_factory=dict)
    fit: str = "crop"


def save(path: str | Path, network: Network, card: Card) -> int:
    """Write a network with its card to `path`, and return the file's size in bytes.

    ValueError if the network has masks or is a folded copy; OSError if the file cannot be written.
    """
    whole = content(network, card)
    replace(Path(path), whole)
    return len(whole)


def content(network: Network, card: Card):
    """Return the bytes that `save` writes. ValueError if the network has masks or is a folded copy."""
    if any(unit.gate is not None for unit in network.all_units.values()):
        raise ValueError("a network with masks is not written: remove the filters first")
    if not network.storable:
        raise ValueError("a folded copy is not written: write the network that it came from")
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    return packed({"format": FORMAT, **asdict(card), "shapes": network.shapes(), "tensors": tensors})


def load(path: str | Path) -> Network:
    """Read the network in a file: it is on the CPU, in evaluation mode, and has its `Card` as `.card`.

    Refused if the file is none of these, or does not fit this program.
    """
    keys = {entry.name for entry in fields(Card)}
    state = {"fit": "crop"} | read_tensors(Path(path), "model file", {*keys - {"fit"}, "shapes", "tensors"}, FORMAT)
    try:
        with torch.device("meta"):
            network = NETWORKS.get(state["arch"])(classes=len(state["classes"]), channels=len(state["mean"]))
        network.to_empty(device="cpu")
        network.reshape(state["shapes"])
        network.load_state_dict(state["tensors"])
        if len(network.outputs) == 1 and network.widths()[network.outputs[0]] != len(state["classes"]):
            raise ValueError("it has another number of classes than of outputs")
        _check(state)
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise Refused(f"'{path}' does not fit this program: {' '.join(str(error).split())[:200]}") from None
    network.card = Card(**{name: state[name] for name in keys})
    return network.to(memory_format=torch.channels_last).eval()


def _check(state: dict) -> None:
    """Raise ValueError for a card that cannot be used."""
    mean, std = state["mean"], state["std"]
    channels = len(mean) == len(std) > 0 and all(isinstance(value, float) for value in (*mean, *std))
    names = isinstance(state["classes"], list) and all(isinstance(name, str) for name in state["classes"])
    size = isinstance(state["image_size"], int) and state["image_size"] > 0
    fit = state["fit"] in ("crop", "pad", "stretch")
    if not (channels and min(std) > 0 and names and size and fit and isinstance(state["training"], dict)):
        raise ValueError("its classes, image size, fit, normalisation or training summary are none")
