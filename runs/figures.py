"""This file draws the figures of runs: curves over epochs, what pruning costs, filters kept in each layer, and confusions."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from runs.fonts import drawing, picture_of
from runs.maps import MOST_NUMBERED, number_map
from runs.records import Run
from runs.storage import replace

# told apart by people with any colour vision: Okabe and Ito, 2008
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = "osD^vPX*"


def draw(runs: list[Run], folder: Path) -> list[Path]:
    """Write the figures of these runs as PNG files into `folder`; returns their paths.

    Runs of different data sets are in figures of their own: their accuracies cannot be compared.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    runs = [run for run in runs if run.rows]
    # a run looks the same in every figure, and eight times eight of them differ
    styles = {run.name: (COLOURS[i % 8], MARKERS[(i + i // 8) % 8]) for i, run in enumerate(runs)}
    data_sets = by_data_set(runs)
    with drawing(*(run.label for run in runs), *data_sets) as pyplot:

        def save(figure, name: str) -> None:
            written.append(folder / (re.sub(r"[^\w.-]+", "_", name) + ".png"))
            replace(written[-1], picture_of(figure, dpi=130))
            pyplot.close(figure)

        for data_set, alike in data_sets.items():
            ending = "" if len(data_sets) == 1 else f"_{data_set}"
            axis = f"validation {alike[0].measure} on {data_set} (%)"
            save(curve_figure(pyplot, styles, alike, axis, lambda row, run: row["valid"][run.metric]), f"accuracy{ending}")
            if pruned := [run for run in alike if run.pruned]:
                axis = "weights under a mask (% of all)"
                save(curve_figure(pyplot, styles, pruned, axis, published_sparsity), f"sparsity{ending}")
            if ended := [run for run in alike if run.summary]:
                save(trade_figure(pyplot, styles, ended, data_set), f"trade_off{ending}")
            if rounds := [run for run in alike if run.summary and run.summary.get("rounds")]:
                save(rounds_figure(pyplot, styles, rounds, data_set), f"rounds{ending}")
            if phased := [run for run in alike if run.summary and run.summary.get("selections")]:
                save(phases_figure(pyplot, styles, phased, data_set), f"phases{ending}")
            if copies := [run for run in alike if run.summary and "connectivity" in run.summary]:
                save(connectivity_figure(pyplot, styles, copies, data_set), f"connectivity{ending}")
        for run in runs:
            for name, figure in _of_one(pyplot, run):
                save(figure, f"{name}_{run.name}")
    return written


def _of_one(pyplot, run: Run) -> Iterator[tuple]:
    """Yield the figures of a single run, each with the beginning of its file's name."""
    if run.pruned and run.config["filters"]:
        yield "kept", kept_figure(pyplot, run)
    test = run.summary["test"] if run.summary else {}
    if curves := test.get("curves"):
        yield "precision", precision_figure(pyplot, run, curves)
    if test.get("confusions") and isinstance(test["confusions"], dict):  # older runs have a list of the commonest
        yield "confusions", confusion_figure(pyplot, run)


def by_data_set(runs: list[Run]) -> dict[str, list[Run]]:
    """The runs by the name of their data set; folders of images that share a name are numbered."""
    groups, names = {}, {}
    for run in runs:
        dataset, data_dir = run.data_set
        if (dataset, data_dir) not in names:
            name = f"{dataset} {Path(data_dir).name}".strip()
            same = sum(other == name or other.startswith(f"{name} (") for other in names.values())
            names[dataset, data_dir] = f"{name} ({same + 1})" if same else name
        groups.setdefault(names[dataset, data_dir], []).append(run)
    return groups


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


def trade_figure(pyplot, styles: dict, runs: list[Run], data_set: str):
    """A figure of the runs' test accuracy against the parameters, and against the MACs, that they keep."""
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    measured = runs[0].measure
    for axes, what, word in zip(panels, ("parameters", "macs"), ("parameters", "MACs"), strict=True):
        for run in runs:
            colour, marker = styles[run.name]
            point = (100 * run.share(what), run.summary["test"][run.metric])
            axes.plot(*point, color=colour, marker=marker, markersize=8, linestyle="none", label=run.name)
        axes.set(xlabel=f"{word} left (% of the dense network)", title=f"{measured[0].upper()}{measured[1:]} against {word}")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"test {runs[0].measure} on {data_set}, last epoch (%)")
    panels[1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def rounds_figure(pyplot, styles: dict, runs: list[Run], data_set: str):
    """A figure of what each round of pruning came to: test accuracy against what is left, a line a run."""
    figure, axes = pyplot.subplots(figsize=(9, 5))
    for run in runs:
        colour, marker = styles[run.name]
        # a network whose cut weights are held is not sparse: it is drawn where those are that train as many weights
        points = [(100 * record.get("trained", record["density"]), record["test"]) for record in run.summary["rounds"]]
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=5, linewidth=1.5, label=run.label)
    word = "trained" if any("trained" in record for run in runs for record in run.summary["rounds"]) else "left"
    axes.set(xscale="log", xlabel=f"{word} of what is pruned (%)", ylabel=f"test accuracy on {data_set} (%)")
    axes.set_title("Rounds of pruning: accuracy against density")
    axes.invert_xaxis()
    ticks = [tick for tick in (100, 50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1) if tick >= min(axes.get_xlim())]
    axes.set_xticks(ticks, map("{:g}".format, ticks))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def phases_figure(pyplot, styles: dict, runs: list[Run], data_set: str):
    """A figure of the metric at the end of each stage against the parameters, and the MACs, that are left by then."""
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for axes, name, word in zip(panels, ("parameters_left", "macs_left"), ("parameters", "MACs"), strict=True):
        for run in runs:
            colour, marker = styles[run.name]
            last = {row.get("stage", ""): row for row in run.rows}  # of each stage
            points = [(100 * row.get(name, 1.0), row["valid"][run.metric]) for row in last.values()]
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=5, linewidth=1.5, label=run.label)
        axes.set(xlabel=f"{word} left (% of the dense network)", title=f"After each stage, against {word}")
        axes.invert_xaxis()
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"validation {runs[0].measure} on {data_set} (%)")
    panels[1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def precision_figure(pyplot, run: Run, curves: dict[str, list[float]]):
    """A figure of precision against recall on the test images, at an overlap of 0.5: a line for each class, the best first."""
    figure, axes = pyplot.subplots(figsize=(7, 5))
    ranked = sorted(curves, key=lambda name: -sum(curves[name]))
    for number, name in enumerate(ranked[:20]):
        recalls = [point / (len(curves[name]) - 1) for point in range(len(curves[name]))]
        style = {"color": COLOURS[number % 8], "marker": MARKERS[(number + number // 8) % 8]}
        axes.plot(recalls, curves[name], markersize=4, linewidth=1.5, label=name, **style)
    axes.set(xlabel="recall", ylabel="best precision at this recall or a higher one", title=f"Precision: {run.label}")
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def connectivity_figure(pyplot, styles: dict, runs: list[Run], data_set: str):
    """A figure of the test error between copies of a network, a line for each pair; a run's pairs look the same."""
    figure, axes = pyplot.subplots(figsize=(9, 5))
    for run in runs:
        colour, marker = styles[run.name]
        for number, pair in enumerate(run.summary["connectivity"]["pairs"]):
            label = f"{run.label}: barrier {pair['barrier']:.1f}" if number == 0 else None
            axes.plot(pair["places"], pair["errors"], color=colour, marker=marker, markersize=4, linewidth=1.5, label=label)
    axes.set(xlabel="place between the copies", ylabel=f"test error on {data_set} (%)", title="Error between copies")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def kept_figure(pyplot, run: Run):
    """A map of a run: layers down, epochs across, the number of filters kept, and as colour their part of the layer's."""
    totals = run.config["filters"]
    kept = [[row["kept_filters"][name] for row in run.rows] for name in totals]
    fractions = [[number / total for number in numbers] for numbers, total in zip(kept, totals.values(), strict=True)]
    texts = [list(map(str, numbers)) for numbers in kept]
    rows = [f"{name}, of {total}" for name, total in totals.items()]
    epochs = [str(row["epoch"]) for row in run.rows]
    figure = number_map(pyplot, fractions, texts, rows, epochs, "epoch", "fraction of the layer's filters")
    figure.axes[0].set_title(f"Filters kept per layer: {run.label}")
    return figure


def confusion_figure(pyplot, run: Run):
    """A map of a run's mistakes on the test images: the true class down, what it was taken for across, in images.

    The diagonal, without colour, has the accuracy in %. Of many classes those with the most mistakes are shown.
    """
    accuracies, mistakes = run.summary["test"].get("classes", {}), run.summary["test"]["confusions"]
    wrong = Counter({name: sum(taken.values()) for name, taken in mistakes.items()})
    for taken in mistakes.values():
        wrong.update(taken)
    names = [name for name, _ in wrong.most_common(MOST_NUMBERED)]
    images = [[None if true == said else mistakes.get(true, {}).get(said, 0) for said in names] for true in names]
    texts = [
        [f"{accuracies[name][0]:.0f} %" if n is None and name in accuracies else str(n or "") for n in row]
        for name, row in zip(names, images, strict=True)
    ]
    figure = number_map(pyplot, images, texts, names, names, "taken for", "test images")
    figure.axes[0].tick_params(axis="x", labelrotation=90)
    figure.axes[0].set_title(f"Confusions on the test images: {run.label}")
    return figure
