"""This file draws maps: a grid of coloured cells with numbers in them."""

import math

MOST_NUMBERED, OF_MANY = 20, 12  # columns with numbers: more would not be readable, and of more than that so many have some


def number_map(
    pyplot,
    values: list[list[float | None]],
    texts: list[list[str]],
    rows: list[str],
    columns: list[str],
    measure: str,
    label: str,
):
    """A figure of `values`, by row and column, as colours over the range that occurs, with `texts` in the cells.

    `measure` names what the columns are, `label` what the colours are. Of many columns some have numbers and names, evenly
    spread, the first and the last among them. A value of None has no colour.
    """
    count = len(columns)
    steps = count if count <= MOST_NUMBERED else OF_MANY
    numbered = sorted({round(step * (count - 1) / max(steps - 1, 1)) for step in range(steps)})
    present = [value for row in values for value in row if value is not None]
    low, high = min(present), max(present)
    margin = 0.0 if high > low else max(abs(low), 1.0) * 0.05  # one colour for a single value
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.24 * len(rows)))
    colours = [[math.nan if value is None else value for value in row] for row in values]
    image = axes.imshow(colours, aspect="auto", cmap="cividis", vmin=low - margin, vmax=high + margin, interpolation="nearest")
    for row, cells in enumerate(texts):
        for column in numbered:
            dark = colours[row][column] < (low + high) / 2
            axes.text(column, row, cells[column], ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
    axes.set_xticks(numbered, [columns[column] for column in numbered])
    axes.set(xlabel=measure)
    figure.colorbar(image, ax=axes, label=label)
    return figure
