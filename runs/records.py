"""This file reads run folders again, for tables and figures."""

import contextlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from runs.schemas import MEASURES, PRUNED, REPORTED, ROW, SUMMARY
from settings.files import MOST_JSON, Damaged, Missing, fitting, parse_json, read_json, read_whole
from settings.flags import FLAGS
from settings.schema import (
    COUNT,
    FINITE,
    PERCENT,
    ListOf,
    Record,
    Unfit,
    check,
    whole,
)


@dataclass
class Run:
    """A run as its folder tells it: config.json, the rows of metrics.jsonl, and summary.json where the run has ended."""

    name: str
    config: dict
    rows: list[dict]
    summary: dict | None
    notes: list[str] = field(default_factory=list)  # for stderr

    @property
    def label(self) -> str:
        """The name, with the epochs that are done where the run has not ended."""
        settings = self.config["settings"]
        plan = self.config.get("plan") or [{"epochs": settings["epochs"] + settings.get("finetune_epochs", 0)}]
        epochs = sum(stage["epochs"] for stage in plan)
        return self.name if self.summary else f"{self.name} (unfinished: {len(self.rows)} of {epochs})"

    @property
    def metric(self) -> str:
        """The measure that chooses the best epoch; where an older record does not name it, the first one of its rows, if any."""
        told = self.rows[0]["valid"] if self.rows else (self.summary or {}).get("test", ["top1"])
        return self.config.get("metric") or next(iter(told))

    @property
    def measure(self) -> str:
        """What the metric is called: accuracy, or its own name."""
        return "accuracy" if self.metric == "top1" else self.metric

    @property
    def data_set(self) -> tuple[str, str]:
        """The name of the data set that the run learned; of a folder of images also where it is, else an empty text."""
        settings = self.config["settings"]
        dataset = settings.get("dataset", FLAGS["dataset"].default)  # an older run may not say
        return dataset, str(settings.get("data_dir", "")) if dataset in ("folder", "voc") else ""

    @property
    def arch(self) -> str:
        """The name of the network that the run ended with: the last student may have another one than that of --arch."""
        generations = (self.summary or {}).get("generations") or [{}]
        return generations[-1].get("network", self.config["settings"]["arch"])

    @property
    def pruned(self) -> bool:
        return self.config["settings"]["prune_type"] != "none"

    def share(self, what: str) -> float | None:
        """The fraction of "filters", "parameters" or "macs" that the run kept; None before it has ended."""
        if self.summary is None:
            return None
        dense = self.summary["dense"][what]
        return self.summary["left"][what] / dense if dense else 1.0  # a network of linear layers has no filters


def read_run(path: Path) -> Run:
    """The run whose folder `path` is. Raises Missing where none is; Refused for files that cannot be read, or are no run's."""
    config = read_json(path / "config.json", "record of a run", REPORTED)
    summary, notes = None, []
    rows = read_rows(path / "metrics.jsonl", notes)
    with contextlib.suppress(Missing):  # where the run has not ended
        try:
            summary = read_json(path / "summary.json", "summary", SUMMARY)
        except Damaged as error:
            notes.append(f"{error}; the run counts as unfinished")
    run = Run(path.resolve().name, config, rows, summary, notes)
    with fitting(path, "folder of a run"):
        if summary and "last" in summary and rows[-1:] != [summary["last"]]:
            raise Unfit("summary.json is of other epochs than metrics.jsonl")
        if rows or summary:
            rows_fit(rows, config["filters"] if run.pruned else None, config.get("prunable"))
            for measures in [*(row["valid"] for row in rows), *([summary["test"]] if summary else [])]:
                measured(measures, (run.metric,), "its measures")
    return run


def read_rows(path: Path, notes: list[str]) -> list[dict]:
    """The rows of a metrics.jsonl; none where it does not exist. A last line that is half written is left out, and noted."""
    try:
        *lines, last = read_whole(path, "record of epochs", MOST_JSON).split(b"\n")
    except Missing:
        return []
    if last:
        notes.append(f"'{path}' ends in half a line, which is left out")
    return [parse_json(line, path, "record of epochs", ROW) for line in lines]


def rows_fit(rows, filters: dict[str, int] | None = None, prunable: int | None = None, measures: dict | None = None) -> None:
    """Raise Unfit unless these are the rows of epochs 0, 1, ..., and have these `measures`, names by part of a row.

    Where the `filters` of each layer and the number of `prunable` pieces are known, they cannot keep or cut more.
    """
    check(rows, ListOf(ROW), "rows")
    for number_, row in enumerate(rows):
        where = f"rows[{number_}]"
        check(row["epoch"], whole(number_, number_), f"{where}.epoch")
        for part, names in (measures or {}).items():
            measured(row[part], names, f"{where}.{part}")
        if "num_zero" in row:
            check(row, PRUNED, where)
            check(row["num_zero"], whole(0, row["num_total"]), f"{where}.num_zero")
        if filters is not None:
            check(
                row.get("kept_filters"), Record({name: whole(0, most) for name, most in filters.items()}), f"{where}.kept_filters"
            )
            if row["kept_filters"].keys() != filters.keys():
                raise Unfit(f"{where}.kept_filters is of other layers than filters")
        if prunable:
            check(row.get("cut"), whole(0, prunable), f"{where}.cut")


def measured(measures: dict, names: tuple[str, ...], where: str) -> None:
    """Raise Unfit unless these measures are there; accuracies, all but the number of images, are in %."""
    check(measures, Record({name: COUNT if name == "images" else PERCENT for name in names}, MEASURES.optional, FINITE), where)


def name_apart(runs: list[Run]) -> None:
    """Number the names of runs whose folders have the same name: run, run (2), ..."""
    seen = Counter()
    for run in runs:
        seen[run.name] += 1
        if seen[run.name] > 1:
            run.name = f"{run.name} ({seen[run.name]})"


def weights_left(summary: dict) -> tuple[int, int] | None:
    """How many of the weights that could be cut are not zero, and how many there are; None where no smaller pieces were cut."""
    layers = summary.get("weights", {}).values()  # older summaries have none
    return (sum(layer["left"] for layer in layers), sum(layer["of"] for layer in layers)) if layers else None


def best_row(rows: list[dict], metric: str) -> dict:
    """The row with the best validation metric among those at the final rate: before that the network is another one."""
    return max((row for row in rows if row.get("cut", 0) >= rows[-1].get("cut", 0)), key=lambda row: row["valid"][metric])
