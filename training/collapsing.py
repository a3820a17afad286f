"""This file tells of layers that collapse when masks are made, so that no run goes on without them in silence."""

from pruning.collapse import collapse
from runs.console import collapse_line, note
from settings.errors import Failed


def tell_collapse(run) -> str:
    """Say on stderr what has collapsed under the masks of now, unless it is what was said last; returns what was said.

    Failed where nothing at all is left.
    """
    pieces = run.pruner.entries
    if run.pruner.cut() == pieces:
        raise Failed(f"nothing is left: all {pieces} pieces that could be cut are cut")
    line = collapse_line(collapse(run.model))
    if line and line != run.collapsed:
        note(run.settings, f"layer collapse: {line}")
    return line
