"""This command makes tables and figures of run folders: `python report.py result/*`.

It reads files only; unfinished runs are marked, not dropped.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from runs.figures import draw
from runs.records import Run, best_row, name_apart, read_run, weights_left
from runs.tables import write_table
from settings.errors import Refused, guard, one_line
from settings.files import Missing
from settings.flags import FLAGS, defaults


def groups(runs: list[Run]) -> list[list[Run]]:
    """The runs in groups that differ by nothing but the seed and the machine, in the order of each group's first run.

    An unfinished run is a group by itself.
    """
    groups_by_key, alike = {}, {"typed", "generation"} | {name for name, flag in FLAGS.items() if not flag.makes_a_row}
    for run in runs:
        # flags that an older run did not know were at their defaults
        settings = defaults() | run.config["settings"]
        settings = {name: value for name, value in settings.items() if name not in alike}
        # a run whose epochs grew on the way is another experiment
        grew = any("epochs was" in change for session in run.config.get("resumed", []) for change in session["changed"])
        key = json.dumps([settings, run.name if grew or run.summary is None else None], sort_keys=True)
        groups_by_key.setdefault(key, []).append(run)
    return list(groups_by_key.values())


def table_row(runs: list[Run], measures: Sequence[str] = ()) -> dict:
    """The line of the table, as cells by column, for runs that differ by their seed; lists hold a value for each run.

    `measures` are what the metrics of all runs in the table are called, each of which has columns of its own; by default that
    of these runs.
    """
    first = runs[0]
    ended = [run.summary for run in runs if run.summary]
    reached = {}
    for name in measures or [first.measure]:
        mine = [run for run in runs if run.measure == name]
        reached[f"{name} last %"] = [run.rows[-1]["valid"][run.metric] for run in mine if run.rows]
        reached[f"{name} best %"] = [best_row(run.rows, run.metric)["valid"][run.metric] for run in mine if run.rows]
        reached[f"test {name} %"] = [run.summary["test"][run.metric] for run in mine if run.summary]
    row = {
        "run": first.label,
        "n": len({run.config["settings"]["seed"] for run in runs}),
        "rate asked": rate_asked(first),
        "rate got": [rate_got(run) for run in runs if run.rows],
        **reached,
    }
    row["weights left %"] = [100 * left / all_ for left, all_ in filter(None, map(weights_left, ended))]
    for what, word in (("filters", "filters left"), ("parameters", "parameters left"), ("macs", "MACs left")):
        row[word] = [summary["left"][what] for summary in ended]
        row[f"{word} %"] = [100 * run.share(what) for run in runs if run.summary]
    row["mask changes an epoch"] = [mask_changes(run) for run in runs if run.pruned and run.rows]
    row["seconds"] = [sum(row["seconds"] for row in run.rows) for run in runs if run.rows]
    row["command"] = first.config["command"]
    return row


def rate_asked(run: Run) -> float | list:
    """The rate that the command named, 0 of a run that prunes nothing; none where a budget, a procedure or a file said it."""
    settings = run.config["settings"]
    if not run.pruned:
        return 0.0
    if settings.get("target_macs") or settings.get("target_params"):
        return []
    said = settings["prune_rate"] or "prune_rate" in settings.get("typed", ())
    return settings["prune_rate"] if said else []


def rate_got(run: Run) -> float:
    """The fraction of filters, or of smaller pieces, under a mask after the last epoch."""
    row = run.rows[-1]
    if not run.pruned:
        return 0.0
    if run.config.get("prunable") and "cut" in row:
        return row["cut"] / run.config["prunable"]
    return 1 - sum(row["kept_filters"].values()) / sum(run.config["filters"].values())


def mask_changes(run: Run) -> float:
    """The mean number of mask entries that moved in an epoch, without the epoch that made the first masks."""
    changes = [row["mask_changes"] for row in run.rows[: run.config["settings"]["epochs"]]]
    first = next((epoch for epoch, moved in enumerate(changes) if moved), len(changes))
    return statistics.mean(changes[first + 1 :] or [0])


def layer_rows(runs: list[Run]) -> list[dict]:
    """Rows with the filters that each pruned run keeps in each layer after its last epoch, a column for each run.

    Layers of the same name but another number of filters, as other networks have, are rows of their own.
    """
    rows = {}
    for run in runs:
        if run.pruned and run.rows:
            for name, total in run.config["filters"].items():
                row = rows.setdefault((name, total), {"layer": name, "filters": total})
                row[run.name] = run.rows[-1]["kept_filters"][name]
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    return [{column: row.get(column, "-") for column in columns} for row in rows.values()]


def main(argv: list[str]) -> int:
    """Print the table and draw the figures that the command line asks for; returns the exit status."""
    description = "Tables and figures from run folders. Reads files only; unfinished runs are marked, not dropped."
    parser = argparse.ArgumentParser(prog="report.py", description=description)
    parser.add_argument("paths", nargs="+", type=Path, help="run folders; other paths are passed over")
    parser.add_argument("--format", choices=("markdown", "csv", "json"), default="markdown", help="of the table on stdout")
    parser.add_argument("--layers", action="store_true", help="the filters kept in each layer instead, after the last epoch")
    parser.add_argument("--plots", type=Path, help="folder for the figures (default: plots, beside the first run)")
    parser.add_argument("--no_plots", action="store_true", help="the table only")
    options = parser.parse_args(argv)
    runs, folders = [], []
    for path in options.paths:
        try:
            runs.append(read_run(path))
            folders.append(path.resolve())
            for line in runs[-1].notes:
                print(one_line(f"report.py: {line}"), file=sys.stderr)
        except Missing:
            print(one_line(f"report.py: no run in '{path}', passed over"), file=sys.stderr)
        except Refused as error:
            print(one_line(f"report.py: {error}; passed over"), file=sys.stderr)
    name_apart(runs)
    if not runs:
        print("report.py: error: none of these is the folder of a run", file=sys.stderr)
        return 2
    measures = list(dict.fromkeys(run.measure for run in runs))
    rows = layer_rows(runs) if options.layers else [table_row(group, measures) for group in groups(runs)]
    if not rows:
        print("report.py: error: none of these runs pruned anything", file=sys.stderr)
        return 2
    print(write_table(rows, options.format))
    if not options.no_plots:
        folder = options.plots or folders[0].parent / "plots"
        try:
            for path in draw(runs, folder):
                print(one_line(str(path)), file=sys.stderr)
        except OSError as error:
            print(one_line(f"report.py: error: cannot write figures to '{folder}': {error.strerror}"), file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    with guard("report.py"):
        sys.exit(main(sys.argv[1:]))
