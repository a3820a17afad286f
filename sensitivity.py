"""This command measures what accuracy each layer costs when it alone is pruned: `python sensitivity.py MODEL > sensitivity.md`.

The method is of Li et al., 2017 (arXiv 1608.08710), section 3.2. MODEL is a run's folder, a checkpoint, or a model.pt of a
whole network. The scan is on the run's own held-out images, without training. `--out` names the file that --prune_scope
"sensitivity(file=...)" reads, `--plot` a figure. Flags of modeling.py such as --data_dir, --prune_imp and --device are
passed on.
"""

import argparse
import shlex
import sys
from pathlib import Path

from runs.fonts import drawing, picture_of
from runs.maps import number_map
from runs.storage import as_json, replace
from runs.tables import write_table
from settings.arguments import parse
from settings.earlier import as_measured_on
from settings.errors import Refused, guard
from settings.meaning import finds_counts

RATES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def scan(run, rates: list[float], images: int | None) -> tuple[float, dict[str, list[float]]]:
    """Cut each layer alone at each rate; returns the whole network's metric in %, and the points lost, by layer.

    What is decided together, such as the groups of a convolution and what they read, is one layer. `images` limits the held-out
    images to the first so many; None takes all.
    """
    import torch

    from pruning.groups import Decisions

    split = run.task.valid or run.task.test
    split = split if images is None else split.pick(slice(0, images))
    pruner, losses = run.pruner, {}
    decisions = Decisions(run.model, list(pruner.units), "free", pruner.decisions.tied_too)
    scores = pruner.scores()
    merged = decisions.merge(scores)
    everything = {name: torch.ones_like(score, dtype=torch.bool) for name, score in merged.items()}
    whole = run.evaluate(split)[run.task.metric]

    def put(name: str, keep) -> None:
        masks = decisions.spread(everything | {name: keep}, scores)
        for member in decisions.layers[name]:
            pruner.gates[member].set(masks[member])

    for name, score in merged.items():
        order, losses[name], lost_by_cut = score.argsort(stable=True), [], {}
        for rate in rates:
            cut = min(int(rate * len(order) + 1e-9), len(order) - 1)
            if cut not in lost_by_cut:  # several rates may cut the same number of a small layer's filters
                put(name, everything[name].index_fill(0, order[:cut], False))
                lost_by_cut[cut] = round(whole - run.evaluate(split)[run.task.metric], 4)
            losses[name].append(lost_by_cut[cut])
        put(name, everything[name])
    return whole, losses


def draw(rates: list[float], whole: float, losses: dict[str, list[float]], path: Path) -> None:
    """Write a map to `path`: layers down, rates across, the accuracy in % that is left when that layer alone is cut."""
    accuracies = [[whole - point for point in points] for points in losses.values()]
    texts = [[f"{accuracy:.1f}" for accuracy in row] for row in accuracies]
    columns = [f"{100 * rate:g}" for rate in rates]
    with drawing(*losses) as pyplot:
        measure = "filters of one layer cut (%)"
        figure = number_map(pyplot, accuracies, texts, list(losses), columns, measure, "accuracy without training (%)")
        figure.axes[0].set_title(f"Accuracy when one layer is cut alone: {whole:.2f} % with all filters")
        replace(path, picture_of(figure, dpi=150))
        pyplot.close(figure)


def fail(message: str):
    """Raise Refused, where an expression is needed."""
    raise Refused(message)


def read(argv: list[str]):
    """This command's own options, and the settings of the run that it scans. Raises Refused for what it cannot do."""
    parser = argparse.ArgumentParser(
        prog="sensitivity.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.error = lambda message: fail(" ".join(message.split()))
    parser.add_argument("model", help="a run's folder, a checkpoint, or a model.pt of a whole network")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=RATES, help="fractions of a layer's filters (default 0.1 to 0.9)"
    )
    parser.add_argument("--images", type=int, help="of the held-out ones, the first so many (default all)")
    parser.add_argument("--out", type=Path, metavar="JSON", help="what --prune_scope sensitivity reads")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="a figure, by matplotlib")
    options, rest = parser.parse_known_args(argv)
    if not all(0 < rate < 1 for rate in options.rates):
        fail("--rates are fractions between 0 and 1")
    if options.images is not None and options.images < 1:
        fail("--images is at least 1")
    for file in filter(None, (options.out, options.plot)):
        if file.exists() or not file.absolute().parent.is_dir():
            fail(f"'{file}' is there already" if file.exists() else f"no folder '{file.parent}'")  # nothing is overwritten
    if options.plot and (options.plot.suffix != ".png" or options.plot == options.out):
        fail(f"--plot {options.plot}: choose another name, that ends in .png")
    if taken := {"--prune_type", "--prune_phase", "--init", "--scratch", "--out_dir"} & {word.split("=")[0] for word in rest}:
        fail(f"{min(taken)} has no effect on a scan")
    settings = parse(["--init", options.model, "--prune_type", "structured", "--prune_phase", "init", "--quiet", *rest])
    settings = as_measured_on(settings, options.model)
    if finds_counts(settings.pruning.prune_imp):
        fail(f"--prune_imp {settings.pruning.prune_imp} finds its own counts, and gives no order to cut in")
    return options, settings


def main(argv: list[str]) -> None:
    """Scan the model that the command line names; print the table, and write the file and the figure asked for."""
    options, settings = read(argv)

    from training.experiment import start

    run = start(settings)
    rates = sorted({*options.rates})
    whole, losses = scan(run, rates, options.images)
    if options.out:
        command = shlex.join(["python", "sensitivity.py", *argv])
        record = {"command": command, "accuracy": whole, "rates": rates, "layers": losses}
        replace(options.out, as_json(record, indent=1))
    filters = {name: unit.filters for name, unit in run.model.units.items()}
    rows = [
        {
            "layer": name,
            "filters": filters[name],
            **{f"{100 * rate:g} %": f"{whole - p:.2f}" for rate, p in zip(rates, points, strict=True)},
        }
        for name, points in losses.items()
    ]
    measured = run.task.word.replace("accuracy", "Accuracy")
    print(f"{measured} {whole:.2f} % with all filters; below, with so many of one layer's filters cut, no training:\n")
    print(write_table(rows, "markdown"), flush=True)
    if options.plot:
        draw(rates, whole, losses, options.plot)


if __name__ == "__main__":
    with guard("sensitivity.py"):
        main(sys.argv[1:])
