"""This file holds the rules about gates, and about what puts or moves them; settings/rules.py says what a rule is."""

from settings.meaning import (
    cuts_itself,
    gate_that_learns,
    holds_what_is_cut,
    learned_scales,
    masks_stay,
    scratch_model,
    smaller_pieces,
    zero_filters,
)
from settings.registry import PROCEDURES, parse_call
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


@rule("new", "saved")
def penalties_are_of_weights_that_are_trained(settings) -> str | None:
    gate = gate_that_learns(settings)
    if gate and "freezes" in gate.traits and settings.training.reg != "none":
        return f"--reg {settings.training.reg} moves weights, and --prune_gate {gate.name} leaves them as they begin: choose one"


@rule("new", "saved")
def a_unit_has_one_gate(settings) -> str | None:
    kind = settings.pruning.prune_type
    if kind != "none" and learned_scales(settings):
        return f"--reg {settings.training.reg} puts scales where --prune_type {kind} puts masks: choose one"


@rule("new")
def scales_are_put_on_whole_networks(settings) -> str | None:
    if learned_scales(settings) and (settings.network.widths or scratch_model(settings)):
        return f"--reg {settings.training.reg} puts its scales on a whole network: leave out --widths and --scratch"


@rule("new", "saved")
def filters_that_are_cut_by_a_procedure(settings) -> str | None:
    procedure = PROCEDURES.entry(settings.run.procedure)
    kind, gate = settings.pruning.prune_type, gate_that_learns(settings)
    if cuts_itself(settings) and gate:
        return f"--procedure {procedure.name} cuts by --prune_imp, and --prune_gate {gate.name} learns what is cut: choose one"
    if "removes" in procedure.traits and (kind == "none" or smaller_pieces(settings)):
        return f"--procedure {procedure.name} takes out whole filters: it needs --prune_type structured, not {kind}"


@rule("new")
def soft_masks_move(settings) -> str | None:
    """Also where a recipe says them; that a flag which was typed has an effect is another rule."""
    gate = settings.pruning.prune_gate
    if settings.pruning.prune_type != "none" and parse_call(gate)[0] == "soft" and (still := masks_stay(settings)):
        by = f"--recipe {settings.run.recipe} says --prune_gate {gate}, which" if settings.run.recipe else f"--prune_gate {gate}"
        return f"{by} is about masks that move, {still}: type another --prune_gate"


@rule("new", "saved")
def soft_masks_are_of_filters(settings) -> str | None:
    if smaller_pieces(settings) and parse_call(settings.pruning.prune_gate)[0] == "soft":
        return f"--prune_gate soft is of filters, not of --prune_type {settings.pruning.prune_type}"


@rule("new", "saved")
def what_is_held_are_single_weights(settings) -> str | None:
    pruned, pruning = holds_what_is_cut(settings), settings.pruning
    if pruned and pruning.prune_type != "unstructured":
        return f"--procedure {settings.run.procedure}: pruned='{pruned}' is about single weights: type --prune_type unstructured"
    if pruned and zero_filters(settings):
        return f"--reg {settings.training.reg} sets filters to 0, and pruned='{pruned}' holds weights of them: choose one"


@rule("new", "saved")
def what_grew_is_of_the_runs_own_tickets(settings) -> str | None:
    pruned, kind = holds_what_is_cut(settings), parse_call(settings.run.procedure)[1].get("kind", "random")
    if pruned and pruned.startswith("grown") and kind in ("random", "shuffle", "reinitialise"):
        return (
            f"--procedure {settings.run.procedure}: which weights grew is known of the run's own masks and weights, not with"
            f" kind='{kind}': choose kind='run'"
        )
