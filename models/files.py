"""This file writes and reads model.pt: a network with all that is needed to use it, rebuilt without any pruning code."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.coding import Coded, decode
from models.network import Network, build
from models.program import rebuild
from models.shapes import check_pass, check_values
from runs.storage import packed, read_tensors, replace
from settings.files import fitting
from settings.flags import of_kind
from settings.own_files import own_file
from settings.saved import check_settings, check_value, named_as_today
from settings.schema import ANYTHING, COUNT, TEXT, DictOf, Is, ListOf, Maybe, Record, Unfit, check, number

FORMAT = 1
CARD = Record(
    {
        "arch": TEXT,
        "classes": ListOf(TEXT, 1),
        "mean": ListOf(number(0, 255), 1),
        "std": ListOf(number(0, 255, above=True), 1),
        "training": Record({}, {"settings": Record(), "began_in": Maybe(TEXT)}),
        **dict.fromkeys(("image_size", "fit", "shapes"), ANYTHING),
    },
    {"format": ANYTHING, "tensors": DictOf(ANYTHING, 1), "bytes": ANYTHING, "headers": ANYTHING},
)
IN_ONE = Record(
    {
        "bytes": Is("a tensor of bytes", lambda it: isinstance(it, Tensor) and it.dtype == torch.uint8 and it.dim() == 1),
        "headers": DictOf(ListOf(COUNT, 6), 1),
    },
    others=ANYTHING,
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
    keys, newer = {entry.name for entry in fields(Card)}, {"fit": "crop"}
    state = newer | read_tensors(Path(path), "model file", {*keys - newer.keys(), "shapes"}, FORMAT)
    with fitting(path, "model file"):
        check(state, CARD)
        card = card_from({name: state[name] for name in keys})
        shape = (len(card.mean), card.image_size, card.image_size)
        with torch.device("meta"):
            options = {"classes": len(card.classes), "channels": shape[0], "size": shape[1]}
            # no code of the user's is executed: the file holds the program of such a network
            network = rebuild(card.arch, state["shapes"], **options) if own_file(card.arch) else build(card.arch, **options)
            outputs = [network.widths()[node] for node in network.outputs]
            network.reshape(state["shapes"])
        tensors = state["tensors"] if "tensors" in state else _taken_apart(network, state)
        check_values(network.state_dict(), tensors, "tensors")
        check_pass(network, shape)
        if [network.widths()[node] for node in network.outputs] != outputs:
            raise Unfit("it has another number of classes than of outputs")
    network.to_empty(device="cpu")
    for name, shape in state["shapes"]["joints"].items():
        network.joints[name].place(**shape)
    network.load_state_dict(tensors)
    network.card = card
    return network.to(memory_format=torch.channels_last).eval()


def card_from(values: dict) -> Card:
    """Return the card that a file holds, by its `values`.

    Unfit for what no command could have asked for, and for a normalisation that cannot be used.
    """
    check(values, Record({entry.name: CARD.required[entry.name] for entry in fields(Card)}))
    for name in ("arch", "image_size", "fit"):
        check_value(name, values[name], name)
    if len(values["mean"]) != len(values["std"]):
        raise Unfit("its mean and std are of different channels")
    training = values["training"]
    if "settings" in training:
        training = training | {"settings": named_as_today(training["settings"])}
        check_settings(
            training["settings"], [*(name for name in of_kind("method") if name != "epochs"), "data_dir"], "training.settings"
        )
    return Card(**values | {"training": training})


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
    """Return the tensors, by name, of which `_in_one` made one. Unfit where it is too short, too long or damaged."""
    check(state, IN_ONE)
    content, tensors = memoryview(state["bytes"].numpy()), {}
    for name, value in network.state_dict().items():
        if not value.is_floating_point():
            tensors[name] = torch.zeros(value.shape, dtype=value.dtype)  # batch norm's count, for training only
            continue
        if name in state["headers"]:
            try:
                tensors[name], size = decode(content, state["headers"][name], value.shape)
            except ValueError as error:
                raise Unfit(f"{name}: {error}") from None
        else:
            size = 4 * value.numel()
            if size > len(content):
                raise Unfit("it is cut short")
            numbers = np.frombuffer(content[:size], dtype="<f4").astype(np.float32)
            tensors[name] = torch.from_numpy(numbers).view(value.shape)
        content = content[size:]
    if len(content):
        raise Unfit("it is longer than its network")
    return tensors
