"""This file says when a flag has no effect because of --procedure; settings/effects.py says what a condition is."""

from settings.meaning import cuts_itself, learns_from_unlabelled, says_amounts, takes_masks_of, updates_survivors
from settings.own_files import own_file
from settings.registry import PROCEDURES


def procedure_cuts(settings) -> str | None:
    """Flags about when masks are made, with a procedure that itself cuts, between two of its stages."""
    if cuts_itself(settings):
        name = PROCEDURES.entry(settings.run.procedure).name
        return f"has no effect with --procedure {name}, which says itself when it cuts"


def procedure_says_amounts(settings) -> str | None:
    """Flags that say how much goes, with a procedure that says it itself."""
    if says_amounts(settings) is not None:
        name = PROCEDURES.entry(settings.run.procedure).name
        return f"has no effect with --procedure {name}, which says itself how much it cuts"


def masks_are_given(settings) -> str | None:
    """Flags that choose what is cut, with a procedure that takes the masks of an earlier run."""
    if (path := takes_masks_of(settings)) is not None:
        return f"has no effect: what is cut '{path}' says"


def weights_are_given(settings) -> str | None:
    """--init, with a procedure that takes the tickets of an earlier run."""
    if (path := takes_masks_of(settings)) is not None:
        name = PROCEDURES.entry(settings.run.procedure).name
        return f"has no effect with --procedure {name}, which takes the network of '{path}'"


def nothing_to_freeze(settings) -> str | None:
    """--freeze, in a run that begins with fresh weights; a module of the user's own may have trained ones."""
    if settings.network.init is None and not own_file(settings.network.arch):
        return "holds weights that have been trained: it needs --init"


def selects_on_held_out_images(settings) -> str | None:
    """--score_batches, with a procedure that has a criterion of its own."""
    procedure = PROCEDURES.entry(settings.run.procedure)
    if "prune_imp" in procedure.traits:
        return f"has no effect with --procedure {procedure.name}, which measures on the held-out images"


def repairs_nothing(settings) -> str | None:
    """--reconstruct, with a procedure that has no place for it."""
    procedure = PROCEDURES.entry(settings.run.procedure)
    if not {"repairs", "repairs layer by layer"} & procedure.traits.keys():
        return f"has no effect with --procedure {procedure.name}, which repairs nothing"
    if updates_survivors(settings) and "repairs" not in procedure.traits:
        return f"{settings.pruning.reconstruct} updates all layers at once, --procedure {procedure.name} one after the other"


def no_repair(settings) -> str | None:
    """--procedure, for one that repairs layer by layer, without --reconstruct."""
    procedure = PROCEDURES.entry(settings.run.procedure)
    if "repairs layer by layer" in procedure.traits and settings.pruning.reconstruct == "none":
        return f"{procedure.name} cuts and repairs layer by layer: it needs --reconstruct"


def learns_from_labels_alone(settings) -> str | None:
    """--unlabelled, with a procedure that does not learn from such pictures."""
    if not learns_from_unlabelled(settings):
        *_, last = [name for name, entry in PROCEDURES.entries.items() if "unlabelled images" in entry.traits]
        return f"has no effect without --procedure {last}"
