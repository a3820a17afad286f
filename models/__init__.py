"""Networks by name. A new one is a public function in a file of this folder; this file is never edited for it."""

from models.layers import Link, Network, Unit
from registry import Registry

REGISTRY = Registry("network", "models/*.py", leave_out=("__init__.py", "layers.py"))


def build(name: str, **options) -> Network:
    """A network with fresh weights; `options` are the function's own, such as `classes`. ValueError if unknown."""
    return REGISTRY.get(name)(**options)


__all__ = ["REGISTRY", "Link", "Network", "Unit", "build"]
