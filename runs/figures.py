"""This file draws the figures of runs: curves over epochs, what pruning costs, and the filters kept in each layer."""

import re
from pathlib import Path

from runs.records import Run

# told apart by people with any colour vision: Okabe and Ito, 2008
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = "osD^vPX*"


def draw(runs: list[Run], folder: Path) -> list[Path]:
    """Write the figures of these runs as PNG files into `folder`; returns their paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    written = []

    def save(figure, name: str) -> None:
        written.append(folder / f"{name}.png")
        figure.savefig(written[-1], dpi=130, bbox_inches="tight")
        pyplot.close(figure)

    runs = [run for run in runs if run.rows]
    # a run looks the same in every figure, and eight times eight of them differ
    styles = {run.name: (COLOURS[i % 8], MARKERS[(i + i // 8) % 8]) for i, run in enumerate(runs)}
    curves = [("accuracy", "validation accuracy (%)", runs, lambda row, run: row["valid"][run.metric])]
    curves += [
        (
            "sparsity",
            "weights under a mask (% of all)",
            [run for run in runs if run.pruned],
            published_sparsity,
        )
    ]
    for name, axis, drawn, value in curves:
        if drawn:
            save(curve_figure(pyplot, styles, drawn, axis, value), name)
    ended = [run for run in runs if run.summary]
    if ended:
        save(trade_figure(pyplot, styles, ended), "trade_off")
    for run in runs:
        if run.pruned:
            save(kept_figure(pyplot, run), "kept_" + re.sub(r"[^\w.-]+", "_", run.name))
    return written


def published_sparsity(row: dict, run: Run | None = None) -> float:
    """The weights under a mask in % of all, as the paper's code printed them."""
    return 100 * row["num_zero"] / row["num_total"]


def curve_figure(pyplot, styles: dict, runs: list[Run], axis: str, value):
    """A figure with one line for each run: `value(row, run)` over the epochs."""
    figure, axes = pyplot.subplots(figsize=(9, 5))
    for run in runs:
        colour, marker = styles[run.name]
        epochs, values = [row["epoch"] for row in run.rows], [value(row, run) for row in run.rows]
        every = max(len(epochs) // 10, 1)
        axes.plot(epochs, values, color=colour, marker=marker, markevery=every, markersize=5, linewidth=1.5, label=run.label)
    axes.set(xlabel="epoch", ylabel=axis, title=f"{axis[0].upper()}{axis[1:]} over epochs")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def trade_figure(pyplot, styles: dict, runs: list[Run]):
    """A figure of the runs' test accuracy against the parameters, and against the MACs, that they keep."""
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for axes, what, word in zip(panels, ("parameters", "macs"), ("parameters", "MACs"), strict=True):
        for run in runs:
            colour, marker = styles[run.name]
            point = (100 * run.share(what), run.summary["test"][run.metric])
            axes.plot(*point, color=colour, marker=marker, markersize=8, linestyle="none", label=run.name)
        axes.set(xlabel=f"{word} left (% of the dense network)", title=f"Accuracy against {word}")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy, last epoch (%)")
    panels[1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def kept_figure(pyplot, run: Run):
    """A map of a run: layers down, epochs across, the fraction of the layer's filters that are kept as colour."""
    totals = run.config["filters"]
    fractions = [[row["kept_filters"][name] / total for row in run.rows] for name, total in totals.items()]
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.2 * len(totals)))
    epochs = [run.rows[0]["epoch"] - 0.5, run.rows[-1]["epoch"] + 0.5]
    image = axes.imshow(
        fractions,
        aspect="auto",
        cmap="cividis",
        vmin=0,
        vmax=1,
        interpolation="nearest",
        extent=[*epochs, len(totals) - 0.5, -0.5],
    )
    axes.set_yticks(range(len(totals)), list(totals), fontsize=7)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="epoch", title=f"Filters kept per layer: {run.label}")
    figure.colorbar(image, ax=axes, label="fraction of the layer's filters")
    return figure
