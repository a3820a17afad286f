"""This file draws scores of networks against what the networks reach."""

import re
from pathlib import Path

from runs.figures import COLOURS, MARKERS
from runs.fonts import drawing, picture_of
from runs.storage import replace


def draw_scores(columns: dict[str, list], networks: list[str], reached: list[float | None], what: str, path: Path) -> None:
    """Write a figure to `path`, a panel for each score: the rank of each network's score, and what it reached.

    `columns` are the scores by name, each with a value, or None, for each network; `what` names the axis of `reached`. The
    networks of one kind, whose names begin with the same letters, look the same.
    """
    kinds = list(dict.fromkeys(map(_kind, networks)))
    across = 3
    with drawing(*networks, what) as pyplot:
        down = -(-len(columns) // across)
        figure, panels = pyplot.subplots(down, across, figsize=(4 * across, 3.2 * down), sharey=True, squeeze=False)
        for axes in panels.flat[len(columns) :]:
            axes.set_axis_off()
        for axes, (name, values) in zip(panels.flat, columns.items(), strict=False):
            places = {value: place for place, value in enumerate(sorted({v for v in values if v is not None}), start=1)}
            for number, kind in enumerate(kinds):
                points = [
                    (places[value], height)
                    for network, value, height in zip(networks, values, reached, strict=True)
                    if _kind(network) == kind and value is not None and height is not None
                ]
                style = {"color": COLOURS[number % 8], "marker": MARKERS[number % 8], "linestyle": "none"}
                axes.plot(*zip(*points, strict=True) if points else ([], []), label=kind, **style)
            axes.set(title=name, xlabel="rank of the score, from the smallest")
            axes.grid(alpha=0.3)
        for row in panels:
            row[0].set_ylabel(what)
        panels[0][-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
        figure.tight_layout()
        replace(path, picture_of(figure, dpi=130))
        pyplot.close(figure)


def _kind(network: str) -> str:
    """The letters that a network's name begins with, and a version behind a v, as in mobilenetv2."""
    return re.match(r"[a-zA-Z_]*((?<=v)\d+)?", network)[0]
