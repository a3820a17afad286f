"""Pruning: what is cut, by what measure, compared with whom, and when."""

from pruning.masks import OutputGate, WeightMask
from pruning.pruner import CRITERIA, PHASES, SCHEDULES, SCOPES, Pruner

__all__ = ["CRITERIA", "PHASES", "SCHEDULES", "SCOPES", "OutputGate", "Pruner", "WeightMask"]
