"""This file reads run folders again, for tables and figures."""

import contextlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from settings.flags import FLAGS


@dataclass
class Run:
    """A run as its folder tells it: config.json, the rows of metrics.jsonl, and summary.json where the run has ended."""

    name: str
    config: dict
    rows: list[dict]
    summary: dict | None

    @property
    def label(self) -> str:
        """The name, with the epochs that are done where the run has not ended."""
        settings = self.config["settings"]
        plan = self.config.get("plan") or [{"epochs": settings["epochs"] + settings.get("finetune_epochs", 0)}]
        epochs = sum(stage["epochs"] for stage in plan)
        return self.name if self.summary else f"{self.name} (unfinished: {len(self.rows)} of {epochs})"

    @property
    def metric(self) -> str:
        """The measure that chooses the best epoch; where an older record does not name it, the first one of its rows."""
        return self.config.get("metric") or next(iter(self.rows[0]["valid"]))

    @property
    def data_set(self) -> tuple[str, str]:
        """The name of the data set that the run learned; of a folder of images also where it is, else an empty text."""
        settings = self.config["settings"]
        dataset = settings.get("dataset", FLAGS["dataset"].default)  # an older run may not say
        return dataset, str(settings.get("data_dir", "")) if dataset == "folder" else ""

    @property
    def pruned(self) -> bool:
        return self.config["settings"]["prune_type"] != "none"

    def share(self, what: str) -> float | None:
        """The fraction of "filters", "parameters" or "macs" that the run kept; None before it has ended."""
        return self.summary["left"][what] / self.summary["dense"][what] if self.summary else None


def read_run(path: Path) -> Run | None:
    """The run whose folder `path` is, or None where no readable run is."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if not {"epochs", "seed", "prune_type", "prune_rate"} <= config["settings"].keys():
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    rows, summary = [], None
    with contextlib.suppress(OSError, ValueError):  # the last line may be half written
        for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            rows.append(json.loads(line))
    with contextlib.suppress(OSError, ValueError):
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    return Run(path.resolve().name, config, rows, summary)


def name_apart(runs: list[Run]) -> None:
    """Number the names of runs whose folders have the same name: run, run (2), ..."""
    seen = Counter()
    for run in runs:
        seen[run.name] += 1
        if seen[run.name] > 1:
            run.name = f"{run.name} ({seen[run.name]})"


def best_row(rows: list[dict], metric: str) -> dict:
    """The row with the best validation metric among those at the final rate: before that the network is another one."""
    return max((row for row in rows if row.get("cut", 0) >= rows[-1].get("cut", 0)), key=lambda row: row["valid"][metric])
