"""Networks by name. A new one is a public function in a file of this folder; this file is never edited for it."""

from models import Card, Network, Unit, save
from models.files import load
from models.joint import Joint
from models.network import Link
from settings.registry import NETWORKS


def build(name: str, **options) -> Network:
    """A network with fresh weights; `options` are the function's own, such as `classes`. ValueError if unknown."""
    return NETWORKS.get(name)(**options)


__all__ = ["Card", "Joint", "Link", "Network", "Unit", "build", "load", "save"]
