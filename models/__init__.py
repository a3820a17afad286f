"""This package holds networks by name. A new one is a public function in a file here; this file is never edited for it."""

from models.adoption import adopt
from models.files import Card, load, save
from models.joint import Joint
from models.layers import Unit
from models.network import Link, Network, build
from models.program import rebuild

__all__ = ["Card", "Joint", "Link", "Network", "Unit", "adopt", "build", "load", "rebuild", "save"]
