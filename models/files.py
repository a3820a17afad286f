"""This file writes and reads model.pt: a network with all that is needed to use it, rebuilt without any pruning code."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.coding import Coded, decode
from models.network import Network, build
from runs.storage import packed, read_tensors, replace
from settings.errors import Refused

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


def save(path: str | Path, network: Network, card: Card, coded: dict[str, Coded] | None = None) -> int:
    """Write a network with its card to `path`, and return the file's size in bytes.

    Tensors whose names are in `coded` are written so, and all others as they are. ValueError if the network has masks or is
    a folded copy; OSError if the file cannot be written.
    """
    whole = content(network, card, coded)
    replace(Path(path), whole)
    return len(whole)


def content(network: Network, card: Card, coded: dict[str, Coded] | None = None):
    """Return the bytes that `save` writes. ValueError if the network has masks or is a folded copy."""
    if any(unit.gate is not None for unit in network.all_units.values()):
        raise ValueError("a network with masks is not written: remove the filters first")
    if not network.storable:
        raise ValueError("a folded copy is not written: write the network that it came from")
    state = {"format": FORMAT, **asdict(card), "shapes": network.shapes()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    return packed({**state, "tensors": tensors} if coded is None else {**state, **_in_one(tensors, coded)})


def load(path: str | Path) -> Network:
    """Read the network in a file: it is on the CPU, in evaluation mode, and has its `Card` as `.card`.

    Refused if the file is none of these, or does not fit this program.
    """
    keys = {entry.name for entry in fields(Card)}
    state = {"fit": "crop"} | read_tensors(Path(path), "model file", {*keys - {"fit"}, "shapes"}, FORMAT)
    try:
        with torch.device("meta"):
            network = build(state["arch"], classes=len(state["classes"]), channels=len(state["mean"]), size=state["image_size"])
        network.to_empty(device="cpu")
        network.reshape(state["shapes"])
        network.load_state_dict(state["tensors"] if "tensors" in state else _taken_apart(network, state))
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


def _in_one(tensors: dict[str, Tensor], coded: dict[str, Coded]) -> dict:
    """Return tensors as the bytes of one, since a torch file has some 200 bytes more for each tensor in it.

    "bytes" holds all floating tensors in their order, those in `coded` coded and the others as float32; "headers" what is
    needed to decode the first.
    """
    parts = [
        coded[name].content if name in coded else value.float().numpy().astype("<f4").tobytes()
        for name, value in tensors.items()
        if name in coded or value.is_floating_point()
    ]
    headers = {name: weight.header for name, weight in coded.items()}
    return {"bytes": torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8), "headers": headers}


def _taken_apart(network: Network, state: dict) -> dict[str, Tensor]:
    """Return the tensors, by name, of which `_in_one` made one. ValueError where it is too short, too long or damaged."""
    content, tensors = memoryview(state["bytes"].numpy()).cast("B"), {}
    for name, value in network.state_dict().items():
        if not value.is_floating_point():
            tensors[name] = torch.zeros_like(value)  # batch norm's count of batches, which nothing reads again
            continue
        if name in state["headers"]:
            tensors[name], size = decode(content, state["headers"][name], value.shape)
        else:
            size = 4 * value.numel()
            if size > len(content):
                raise ValueError("it is cut short")
            numbers = np.frombuffer(content[:size], dtype="<f4").astype(np.float32)
            tensors[name] = torch.from_numpy(numbers).view(value.shape)
        content = content[size:]
    if len(content):
        raise ValueError("it is longer than its network")
    return tensors
