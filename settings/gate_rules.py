"""This file holds the rules of gates that learn what is cut; settings/rules.py says what a rule is."""

from settings.effects import gate_that_learns
from settings.registry import parse_call
from settings.rules import rule


@rule("new", "saved")
def gate_learns_these_pieces(settings) -> str | None:
    if gate := gate_that_learns(settings):
        (kind,) = gate.traits["of"]
        if settings.pruning.prune_type != kind:
            return f"--prune_gate {gate.name} is for --prune_type {kind}, not {settings.pruning.prune_type}"


@rule("new", "saved")
def gate_learns_within_the_run(settings) -> str | None:
    if gate := gate_that_learns(settings):
        options = parse_call(settings.pruning.prune_gate)[1]
        for name in gate.traits.get("epochs", ()):
            first, epochs = options.get(name, gate.options[name].default), settings.training.epochs
            if first >= epochs:
                return f"--prune_gate {gate.name}: nothing is cut before epoch {first:g} ({name}), of {epochs} epochs"
