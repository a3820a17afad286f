"""Pruning: what is cut, by what measure, compared with whom, and when."""

from pruning.masks import OutputGate, WeightMask
from pruning.pruner import Pruner

__all__ = ["OutputGate", "Pruner", "WeightMask"]
