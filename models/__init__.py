"""This package holds networks by name. A new one is a public function in a file here; this file is never edited for it."""

from models.files import Card, load, save
from models.joint import Joint
from models.layers import Unit
from models.network import Link, Network
from settings.registry import NETWORKS


def build(name: str, **options) -> Network:
    """Build the network of this name with fresh weights; `options` are those of its function, such as `classes`.

    ValueError for a name or an option that is unknown.
    """
    return NETWORKS.get(name)(**options)


__all__ = ["Card", "Joint", "Link", "Network", "Unit", "build", "load", "save"]
