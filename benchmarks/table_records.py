"""This file reads the runs of the paper's table: how far each is, the table, and records that can be made public."""

import json
import re
from pathlib import Path

import report
from benchmarks.table_rows import Row
from runs.figures import published_sparsity
from runs.records import Run, read_run
from runs.tables import write_table

ROOT = Path(__file__).resolve().parent.parent
# the best epoch on the test set, and sparsity; the code's two rows were one computation, as its regulariser was 0
PUBLISHED = {
    "dense": ("88.57", "-"),
    "ours_pruning": ("80.81", "70.26"),
    "decorrelation": ("88.00", "-"),
    "ours_both": ("82.28 (last epoch 77.52)", "71.34"),
    "ksc2020": ("80.81 and 82.28", "70.26 and 71.34"),
}
NOTE = """\
Published: KSC 2020, whose code trained ResNet-56; the best epoch on the test set. Of ours the test accuracy is that of
the last epoch. Validation is on the held-out tenth, but for ksc2020: by its recipe on the test set, so its best epoch is
chosen on the test set. Sparsity is num_zero/num_total after the last epoch. Several seeds: mean and standard deviation.
Unfinished rows are marked.

"""


def public(value, words: dict[str, str]):
    """The value without paths of this machine: each path that is a key of `words` is replaced by what it is mapped to.

    A path that ends in a slash is also replaced where a longer path begins with it.
    """
    if isinstance(value, dict):
        return {name: public(inner, words) for name, inner in value.items()}
    if isinstance(value, list):
        return [public(inner, words) for inner in value]
    if isinstance(value, str):
        for word, instead in words.items():
            ends = "" if word.endswith("/") else r"(?![^\s'\"/])"
            value = re.sub(rf"(?<![^\s'\"=]){re.escape(word)}{ends}", lambda _, instead=instead: instead, value)
    return value


class Records:
    """The run folders of some rows, which are in the folder `out`."""

    def __init__(self, out: Path, rows: list[Row]):
        self.out, self.rows = out, rows

    def read(self, row: Row, name: str) -> dict:
        """The record in a JSON file of the row's folder; empty where it is missing or not whole."""
        try:
            return json.loads((self.out / row.name / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def finished(self, row: Row) -> bool:
        """Whether the run has ended and, with --compact, was measured too: a run that was stopped then has a summary."""
        summary = self.read(row, "summary.json")
        return bool(summary) and ("speed" in summary or not self.read(row, "config.json").get("settings", {}).get("compact"))

    def epochs_done(self, row: Row) -> int:
        """How many epochs the row's run has logged."""
        file = self.out / row.name / "metrics.jsonl"
        return file.read_text(encoding="utf-8").count("\n") if file.exists() else 0

    def begun(self, row: Row) -> bool:
        """Whether the row's run has begun."""
        return (self.out / row.name / "config.json").exists()

    def words(self, config: dict) -> dict[str, str]:
        """The paths of this machine in a run's record, and what the public records say in place of each."""
        return {f"{self.out}/": "", f"{ROOT}/": "", config["settings"].get("data_dir") or "data": "data"}

    def tabulate(self) -> str:
        """The table from the run folders, with the published numbers beside ours; the seeds of a row share a line."""
        lines = []
        for line in dict.fromkeys(row.line for row in self.rows):
            folders = [self.out / row.name for row in self.rows if row.line == line]
            runs = [read_run(folder) for folder in folders if (folder / "config.json").exists()]
            for group in report.groups([run for run in runs if run.rows]):
                lines.append(self.table_line(line, group))
        return NOTE + write_table(lines, "markdown") + "\n" if lines else ""

    def table_line(self, line: str, runs: list[Run]) -> dict:
        """The cells of a line of the table, by column."""
        made, config = report.table_row(runs), runs[0].config
        accuracy, sparsity = PUBLISHED.get(line, ("-", "-"))
        seeds = ", ".join(str(run.config["settings"]["seed"]) for run in runs)
        sessions = [session for run in runs for session in (run.config, *run.config.get("resumed", []))]
        return {
            "row": made["run"],
            "n (seeds)": f"{made['n']} ({seeds})",
            "published accuracy %": accuracy,
            "published sparsity %": sparsity,
            "validation last %": made["accuracy last %"],
            "validation best %": made["accuracy best %"],
            "validated on": "held-out tenth" if config["settings"]["val_size"] else "test set",
            "test accuracy, last epoch %": made["test accuracy %"],
            "sparsity %": [published_sparsity(run.rows[-1]) for run in runs if "num_zero" in run.rows[-1]],
            "parameters left %": made["parameters left %"],
            "MACs left %": made["MACs left %"],
            "seconds": made["seconds"],
            "device": ", ".join(dict.fromkeys(session["device_name"] for session in sessions)),
            "command": public(made["command"], self.words(config)),
        }

    def keep(self, target: Path) -> None:
        """Copy the records of finished rows into the folder `target`, without paths of this machine."""
        for row in filter(self.finished, self.rows):
            words = self.words(self.read(row, "config.json"))
            (target / row.name).mkdir(parents=True, exist_ok=True)
            for name in ("config.json", "metrics.jsonl", "summary.json", "result.txt"):
                file = self.out / row.name / name
                if name in ("config.json", "summary.json"):
                    text = json.dumps(public(self.read(row, name), words), indent=1) + "\n"
                else:
                    text = public(file.read_text(encoding="utf-8"), words) if file.exists() else ""
                (target / row.name / name).write_text(text, encoding="utf-8")
