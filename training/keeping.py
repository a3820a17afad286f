"""This file asks which layers --keep leaves whole, and refuses what leaves a step of a procedure nothing to cut."""

import models
from pruning.keeping import left_whole
from settings.arguments import Settings
from settings.errors import Refused
from settings.registry import parse_call


def units_to_keep(model: models.Network, settings: Settings) -> frozenset[str]:
    """Return the units that --keep leaves whole. Raises Refused for a pattern that fits none, or if nothing is left to cut."""
    pruning = settings.pruning
    try:
        return left_whole(model, pruning.keep or (), pruning.prune_type, pruning.residual)
    except ValueError as error:
        raise Refused(f"--keep: {error}") from None


def check_kept(model: models.Network, settings: Settings) -> None:
    """Raise Refused where --keep leaves nothing to cut of what --procedure cuts by itself: a phase, or the classifier."""
    if not settings.pruning.keep:
        return
    whole, (name, options) = units_to_keep(model, settings), parse_call(settings.run.procedure)
    for number, part in enumerate(model.parts(options["phases"]) if options.get("phases") else (), start=1):
        if whole.issuperset(part):
            raise Refused(f"--keep leaves nothing to cut in phase {number} of --procedure {settings.run.procedure}")
    classifier = [unit for unit in model.all_units if model.all_units[unit].is_linear][-1:]
    if name == "rounds" and options.get("classifier", 1) != 1 and whole.issuperset(classifier):
        raise Refused(f"--keep leaves the classifier whole, of which --procedure {settings.run.procedure} would cut a part")
