"""This file writes and reads model.pt: a network with all that is needed to use it, rebuilt without any pruning code."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch

from models.network import Network
from models.shapes import check_pass, check_values
from runs.storage import packed, read_tensors, replace
from settings.files import fitting
from settings.flags import of_kind
from settings.registry import NETWORKS
from settings.saved import check_settings, check_value
from settings.schema import ANYTHING, TEXT, DictOf, ListOf, Maybe, Record, Unfit, check, number

FORMAT = 1
CARD = Record(
    {
        "arch": TEXT,
        "classes": ListOf(TEXT, 1),
        "mean": ListOf(number(0, 255), 1),
        "std": ListOf(number(0, 255, above=True), 1),
        "training": Record({}, {"settings": Record(), "began_in": Maybe(TEXT)}),
        "tensors": DictOf(ANYTHING, 1),
        **dict.fromkeys(("image_size", "fit", "shapes"), ANYTHING),
    },
    {"format": ANYTHING},
)


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
    keys, newer = {entry.name for entry in fields(Card)}, {"fit": "crop"}
    state = newer | read_tensors(Path(path), "model file", {*keys - newer.keys(), "shapes", "tensors"}, FORMAT)
    with fitting(path, "model file"):
        check(state, CARD)
        _check_card(state)
        shape = (len(state["mean"]), state["image_size"], state["image_size"])
        with torch.device("meta"):
            network = NETWORKS.get(state["arch"])(classes=len(state["classes"]), channels=len(state["mean"]))
            network.reshape(state["shapes"])
        check_values(network.state_dict(), state["tensors"], "tensors")
        check_pass(network, shape)
        if len(network.outputs) == 1 and network.widths()[network.outputs[0]] != len(state["classes"]):
            raise Unfit("it has another number of classes than of outputs")
    network.to_empty(device="cpu")
    for name, shape in state["shapes"]["joints"].items():
        network.joints[name].place(**shape)
    network.load_state_dict(state["tensors"])
    network.card = Card(**{name: state[name] for name in keys})
    return network.to(memory_format=torch.channels_last).eval()


def _check_card(state: dict) -> None:
    """Raise Unfit for what no command could have asked for, and for a normalisation that cannot be used."""
    for name in ("arch", "image_size", "fit"):
        check_value(name, state[name], name)
    if len(state["mean"]) != len(state["std"]):
        raise Unfit("its mean and std are of different channels")
    if (settings := state["training"].get("settings")) is not None:
        check_settings(settings, [*(name for name in of_kind("method") if name != "epochs"), "data_dir"], "training.settings")
