"""This package prunes: it says what is cut, by what measure, compared with whom, and when."""

from pruning.gates.output import Output as OutputGate
from pruning.gates.weight import Weight as WeightMask
from pruning.learner import Learner
from pruning.pruner import Pruner

__all__ = ["Learner", "OutputGate", "Pruner", "WeightMask"]
