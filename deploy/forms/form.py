"""This file says what a form is: a network in another representation, and the file that holds it."""

from dataclasses import dataclass
from pathlib import Path

import models
from models import Card, Network
from models.coding import Coded
from models.files import save


@dataclass
class Form:
    """A form of a network: `network` computes what the file will. `suffix` is that of the file's name.

    What a subclass reads from its file may differ from `network` by `tolerance`, a fraction of the largest output; where
    it differs by more, the message ends with `cure`. `about` is what else should be said of it, if anything.
    """

    network: Network
    suffix = ".pt"
    tolerance = 0.0
    cure = ""
    about = ""

    def bits(self) -> dict[str, dict[str, int]]:
        """Return the bits of each tensor by the part of the file that they belong to."""
        raise NotImplementedError

    def save(self, path: Path, card: Card, takes_bytes: bool = True) -> int:
        """Write the file, return its size in bytes. OSError if it cannot be written.

        A file that says what it takes, pictures as bytes or normalised floats, is told by `takes_bytes`.
        """
        raise NotImplementedError

    def read(self, path: Path):
        """Return what maps normalised images to outputs, made from the file alone. Refused for a file that cannot be used."""
        raise NotImplementedError


@dataclass
class CodedForm(Form):
    """A form in which `coded` are the weights in few bits, by name, in a file as `models.load` reads it."""

    coded: dict[str, Coded]

    def bits(self) -> dict[str, dict[str, int]]:
        """Return the bits of each part by tensor: what is coded by its parts, all else as it is, 32 bits a number."""
        bits = {name: dict(coded.bits) for name, coded in self.coded.items()}
        for name, value in self.network.state_dict().items():
            if name not in bits and value.is_floating_point():
                part = "biases" if name.endswith("layer.bias") else "batch norm"
                bits[name] = {part: 32 * value.numel()}
        return bits

    def save(self, path: Path, card: Card, takes_bytes: bool = True) -> int:
        return save(path, self.network, card, self.coded)

    def read(self, path: Path) -> Network:
        return models.load(path).to(next(self.network.parameters()).device)
