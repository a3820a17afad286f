"""This file says when a flag about a teacher has no effect; settings/effects.py says what a condition is."""

from settings.meaning import trains_dense_first


def no_teacher(settings) -> str | None:
    """--distill, without a teacher."""
    if settings.training.teacher is None:
        return "has no effect without --teacher"


def nothing_taught(settings) -> str | None:
    """--teacher, without a loss."""
    if settings.training.distill == "none" and "distill" in settings.typed:
        return "has no effect with --distill none"


def nothing_dense(settings) -> str | None:
    """--teacher dense, in a run that neither begins with a trained network nor trains one before it cuts."""
    if settings.training.teacher == "dense" and not settings.network.init and not trains_dense_first(settings):
        return (
            "dense is the network before pruning, and this run trains none: type --init RUN, or --prune_phase after, or train "
            "one and type --teacher RUN"
        )
