"""This script tabulates short runs of lottery tickets and of pruning at initialisation: `python benchmarks/tickets.py OUT`.

OUT is where `benchmarks/short_runs.sh OUT tickets` or `... init` has put its runs, named NAME_SEED. Each row is a NAME, each
column what is left of the weights; a cell is the accuracy on the test images after the last epoch, the mean over seeds with
the standard deviation. A run that has not ended has no cell yet.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from runs.records import Run, read_run, weights_left  # noqa: E402
from runs.tables import write_table  # noqa: E402
from settings.errors import Refused, guard  # noqa: E402
from settings.files import Missing  # noqa: E402

# ResNet-20, CIFAR-10, 182 epochs a round, medians of three: github.com/lottery-ticket/rewinding-iclr20-public (Renda et al.)
PUBLISHED = {
    "weights rewound, to epoch 12 of 182": (91.99, 92.03, 91.67, 91.41, 91.00),
    "weights rewound, to the start": (90.59, 90.01, 89.21, 87.55, 86.67),
    "learning rate rewound": (92.29, 92.12, 91.89, 91.47, 91.01),
    "fine-tuned": (91.38, 91.00, 90.46, 88.98, 89.33),
}
LEFT = ("51.2 %", "32.8 %", "21.0 %", "13.4 %", "10.7 %")


def points(run: Run) -> dict[str, float]:
    """The accuracy on the test images of a run that has ended, by what is left of the weights, as a column's name."""
    rounds = run.summary.get("rounds")
    if rounds is None:
        left, every = weights_left(run.summary) or (1, 1)  # all are left where no weights were cut
        rounds = [{"density": left / every, "test": run.summary["test"][run.metric]}]
    return {f"{100 * record['density']:.1f} %": record["test"] for record in rounds}


def rows(folder: Path) -> list[dict]:
    """The rows of the table: a name, the number of seeds, and the accuracies by what is left. Refused without an ended run."""
    found: dict[str, list[dict[str, float]]] = {}
    for path in sorted(folder.iterdir()):
        try:
            run = read_run(path)
        except Missing:
            continue
        if run.summary is not None:
            found.setdefault(path.name.rsplit("_", 1)[0], []).append(points(run))
    if not found:
        raise Refused(f"no run in '{folder}' has ended")
    columns = sorted({column for seeds in found.values() for point in seeds for column in point}, key=lambda it: -float(it[:-2]))
    return [
        {"run": name, "seeds": len(seeds)} | {column: [point[column] for point in seeds if column in point] for column in columns}
        for name, seeds in found.items()
    ]


def main(argv: list[str]) -> int:
    """Print the table of the folder that the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0] + ".")
    parser.add_argument("out", type=Path, help="the folder of the runs' folders")
    parser.add_argument("--published", action="store_true", help="print the table of Renda et al., 2020, too")
    options = parser.parse_args(argv)
    if not options.out.is_dir():
        raise Refused(f"no folder at '{options.out}'")
    print(write_table(rows(options.out), "markdown"))
    if options.published:
        table = [{"published": name} | dict(zip(LEFT, values, strict=True)) for name, values in PUBLISHED.items()]
        print(f"\n{write_table(table, 'markdown')}")
    return 0


if __name__ == "__main__":
    with guard("tickets.py"):
        sys.exit(main(sys.argv[1:]))
