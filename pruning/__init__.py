"""This package prunes: it says what is cut, by what measure, compared with whom, and when."""

from pruning.gates.output import OutputGate
from pruning.gates.weight import WeightMask
from pruning.pruner import Pruner

__all__ = ["OutputGate", "Pruner", "WeightMask"]
