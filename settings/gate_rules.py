"""This file holds the rules about gates, and about what puts or moves them; settings/rules.py says what a rule is."""

from settings.effects import learned_scales, smaller_pieces
from settings.registry import PROCEDURES, parse_call
from settings.rules import rule


@rule("new", "saved")
def a_unit_has_one_gate(settings) -> str | None:
    kind = settings.pruning.prune_type
    if kind != "none" and learned_scales(settings):
        return f"--reg {settings.training.reg} puts scales where --prune_type {kind} puts masks: choose one"


@rule("new", "saved")
def filters_that_are_cut_by_a_procedure(settings) -> str | None:
    procedure = PROCEDURES.entry(settings.run.procedure)
    kind = settings.pruning.prune_type
    if "cuts" in procedure.traits and (kind == "none" or smaller_pieces(settings)):
        return f"--procedure {procedure.name} takes out whole filters: it needs --prune_type structured, not {kind}"


@rule("new", "saved")
def soft_masks_are_of_filters(settings) -> str | None:
    if smaller_pieces(settings) and parse_call(settings.pruning.prune_gate)[0] == "soft":
        return f"--prune_gate soft is of filters, not of --prune_type {settings.pruning.prune_type}"
