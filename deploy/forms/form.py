"""This file says what a form is: a network in another representation, and the file that holds it."""

from dataclasses import dataclass
from pathlib import Path

from models import Card, Network
from models.coding import Coded
from models.files import save


@dataclass
class Form:
    """A form of a network: `network` computes what the file will, `coded` are its weights in few bits, by name."""

    network: Network
    coded: dict[str, Coded]

    def bits(self) -> dict[str, dict[str, int]]:
        """Return the bits of each part by tensor: what is coded by its parts, all else as it is, 32 bits a number."""
        bits = {name: dict(coded.bits) for name, coded in self.coded.items()}
        for name, value in self.network.state_dict().items():
            if name not in bits and value.is_floating_point():
                part = "biases" if name.endswith("layer.bias") else "batch norm"
                bits[name] = {part: 32 * value.numel()}
        return bits

    def save(self, path: Path, card: Card) -> int:
        """Write the file that `models.load` reads; return its size in bytes. OSError if it cannot be written."""
        return save(path, self.network, card, self.coded)
