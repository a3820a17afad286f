"""The paper's table: runs its rows in the order of spending, goes on where it was stopped, and writes table.md.

    ./run.sh table                     every row, ResNet-56, 300 epochs
    ./run.sh table --minutes 10        a slice: exit status 75 while there is more to do
    ./run.sh table --row 3             one row by number or name, for a job array
    ./run.sh table --list              rows, commands, what is done
Flags behind -- go to every run: `./run.sh table -- --data_dir /data`.
"""

import argparse
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import report

ROOT = Path(__file__).resolve().parent.parent
AGAIN = 75  # EX_TEMPFAIL: call again
RATES = (0.3, 0.4, 0.5, 0.7, 0.8, 0.9, 0.95)
OURS = "--prune_type structured --prune_rate {} --reg reg_cov --odecay 0.7 --compact"
# best epoch on the test set, and sparsity, as published (KSC 2020)
PUBLISHED = {"dense": (88.57, None), "ours_pruning": (80.81, 70.26), "decorrelation": (88.00, None), "ours_both": (82.28, 71.34)}


@dataclass
class Row:
    """A line of the table: its flags, and the row whose smaller network it trains anew, if any."""

    name: str
    flags: str
    after: str | None = None


def plan(layers: int, seeds: list[int], out: Path) -> list[Row]:
    """Every row, in the order of spending. ksc2020's own seed is 777: the further ones show the noise of a repetition."""
    rows = []
    for seed in seeds:
        mark = "" if seed == seeds[0] else f"_seed{seed}"
        seeded = f"--layers {layers} --seed {seed} "
        rows += [
            Row(f"ours_both{mark}", seeded + OURS.format(0.6)),
            Row(f"ours_pruning{mark}", seeded + "--prune_type structured --prune_rate 0.6 --compact"),
            Row(f"ksc2020{mark}", f"--layers {layers} --recipe ksc2020" + (f" --seed {seed}" if mark else "")),
            Row(f"dense{mark}", seeded + "--prune_type none"),
            Row(f"decorrelation{mark}", seeded + "--prune_type none --reg reg_cov --odecay 0.7"),
            Row(f"paper{mark}", seeded + "--recipe paper"),
        ]
    if layers == 56:
        rows += [Row(f"resnet50_{row.name}", row.flags.replace("--layers 56", "--layers 50")) for row in rows[:2] + rows[3:4]]
    seeded = f"--layers {layers} --seed {seeds[0]} "
    for rate in (0.6, *RATES):
        name = f"{100 * rate:g}"
        ours = "ours_both" if rate == 0.6 else f"ours_{name}"
        rows += [Row(ours, seeded + OURS.format(rate))] if rate != 0.6 else []
        rows += [
            Row(f"random_{name}", seeded + f"--prune_type structured --prune_rate {rate} --prune_imp random --compact"),
            Row(f"fixed_{name}", seeded + f"--prune_type structured --prune_rate {rate} --prune_phase init --compact"),
            Row(f"scratch_{name}", f"--seed {seeds[0]} --scratch {shlex.quote(str(out / ours / 'model.pt'))}", ours),
        ]
    return rows


class Table:
    """The rows in a folder, and the one run that is going on."""

    def __init__(self, options, extra: list[str]):
        self.out, self.extra, self.epochs = options.out.resolve(), extra, options.epochs
        self.rows = plan(options.layers, options.seeds, self.out)
        self.end = time.monotonic() + 60 * options.minutes if options.minutes else None
        self.signal = self.child = None

    def finished(self, row: Row) -> bool:
        return (self.out / row.name / "summary.json").exists()

    def epochs_done(self, row: Row) -> int:
        file = self.out / row.name / "metrics.jsonl"
        return file.read_text().count("\n") if file.exists() else 0

    def command(self, row: Row) -> list[str]:
        """What begins the row's run, or goes on with it."""
        folder = str(self.out / row.name)
        if (self.out / row.name / "config.json").exists():
            return [sys.executable, str(ROOT / "modeling.py"), "--resume", folder]
        flags = [*shlex.split(row.flags), "--epochs", str(self.epochs), "--out_dir", folder, *self.extra]
        return [sys.executable, str(ROOT / "modeling.py"), *flags]

    def stop(self, number, _=None) -> None:
        """A signal for the table is one for its run."""
        self.signal = number
        if self.child:
            self.child.send_signal(signal.SIGTERM)

    def late(self) -> bool:
        """Whether the slice is over, but for what a run needs to end after its step."""
        return self.end is not None and time.monotonic() > self.end - 10

    def run(self, row: Row) -> int:
        """The run's exit status; one that this slice or a signal stopped has 128 + 15."""
        folder = self.out / row.name
        folder.mkdir(parents=True, exist_ok=True)
        print(f"table.py: {row.name}: {shlex.join(self.command(row)[1:])}", file=sys.stderr)
        with (folder / "result.txt").open("w") as result:
            self.child = subprocess.Popen(self.command(row), stdout=result)
            asked = False
            while self.child.poll() is None:
                if self.late() and not asked:
                    self.child.send_signal(signal.SIGTERM)
                    asked = True
                if self.end is not None and time.monotonic() > self.end:
                    self.child.kill()  # nothing is lost but the epoch that was begun
                time.sleep(0.2)
        status, self.child = self.child.returncode, None
        return 128 + signal.SIGTERM if (asked or self.signal) and status else status

    def spend(self, rows: list[Row]) -> int:
        """Run what is not finished; 0, 1 if a row failed, 75 if there is more to do, 128 + n after a signal."""
        failed, waiting = [], []
        for row in rows:
            if self.finished(row):
                continue
            if self.late():
                waiting.append(row)
                continue
            needs = next((other for other in self.rows if other.name == row.after), None)
            if needs and not self.finished(needs):
                print(f"table.py: {row.name} waits for the smaller network of {row.after}", file=sys.stderr)
                waiting.append(row)
                continue
            before, whole = self.epochs_done(row), self.end and time.monotonic()
            status = self.run(row)
            if self.signal:
                return 128 + self.signal
            if status == 128 + signal.SIGTERM:
                waiting.append(row)
                if self.epochs_done(row) == before and self.end - whole > 60:
                    print(f"table.py: {row.name}: not one epoch in this slice: choose a longer --minutes", file=sys.stderr)
                    failed.append(row)
            elif status:
                print(f"table.py: {row.name} failed with status {status}", file=sys.stderr)
                failed.append(row)
        if waiting:
            left = ", ".join(row.name for row in waiting)
            print(f"table.py: left: {left}. The same command goes on", file=sys.stderr)
        return 1 if failed else AGAIN if waiting else 0

    def listing(self) -> list[str]:
        lines = []
        for number, row in enumerate(self.rows):
            done = self.epochs_done(row)
            state = "finished" if self.finished(row) else f"{done} of {self.epochs} epochs" if done else "not begun"
            lines.append(f"{number:3} {row.name:20} {state:18} python modeling.py {shlex.join(self.command(row)[2:])}")
        return lines

    def tabulate(self) -> str:
        """The table from the run folders, published numbers beside ours."""
        lines = []
        for row in self.rows:
            run = report.read_run(self.out / row.name)
            if run is None or not run.rows:
                continue
            made, last = report.table_row([run]), run.rows[-1]
            accuracy, sparsity = PUBLISHED.get(row.name, (None, None))
            settings = run.config["settings"]
            lines.append(
                {
                    "row": run.label,
                    "published %": accuracy or "-",
                    "published sparsity %": sparsity or "-",
                    "test accuracy, last epoch %": made["test accuracy %"],
                    "validation last %": made["accuracy last %"],
                    "best %": made["accuracy best %"],
                    "chosen on": "held-out tenth" if settings["val_size"] else "test set",
                    "sparsity as published %": 100 * last["num_zero"] / last["num_total"] if "num_zero" in last else 0.0,
                    "parameters left %": made["parameters left %"],
                    "MACs left %": made["MACs left %"],
                    "seed": str(settings["seed"]),
                    "seconds": made["seconds"],
                    "device": run.config["device_name"],
                    "command": run.config["command"].replace(f"{self.out}/", "").replace(f"{ROOT}/", ""),
                }
            )
        head = "Published (KSC 2020): the best epoch on the test set. Of ours the last epoch counts; where the best was\n"
        head += "chosen, see the column. Unfinished rows are marked.\n\n"
        return head + report.write_table(lines, "markdown") + "\n" if lines else ""

    def keep(self, place: Path) -> None:
        """Copy the records of finished rows, with no path of this machine."""
        for row in filter(self.finished, self.rows):
            (place / row.name).mkdir(parents=True, exist_ok=True)
            for name in ("config.json", "metrics.jsonl", "summary.json", "result.txt"):
                shutil.copy(self.out / row.name / name, place / row.name / name)
            config = json.loads((self.out / row.name / "config.json").read_text())
            words = {f"{self.out}/": "", f"{ROOT}/": "", config["settings"]["data_dir"]: "data"}
            for name in ("config.json", "summary.json", "result.txt"):
                text = (place / row.name / name).read_text()
                for word, instead in words.items():
                    text = text.replace(word, instead)
                (place / row.name / name).write_text(text)


def chosen(table: Table, wanted: str | None) -> list[Row] | None:
    """The rows asked for, by number or name; None where there is no such row."""
    if wanted is None:
        return table.rows
    found = [row for number, row in enumerate(table.rows) if wanted in (str(number), row.name)]
    return found or None


def main(argv: list[str]) -> int:
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(prog="run.sh table", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", type=int, default=56, help="ResNet depth (default 56, then three rows of ResNet-50)")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("result/table"), help="folder of the runs and of table.md")
    parser.add_argument("--minutes", type=float, help="stop after so long, at a step; go on by the same command")
    parser.add_argument("--row", help="number or name of the one row to run")
    parser.add_argument("--list", action="store_true", help="rows, what is done, and their commands")
    parser.add_argument("--tabulate", action="store_true", help="write the table from what there is, run nothing")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="also copy the finished rows' records there")
    options = parser.parse_args(argv[:cut])
    table = Table(options, argv[cut + 1 :])
    rows = chosen(table, options.row)
    if rows is None:
        print(f"run.sh table: error: no row '{options.row}': see --list", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(table.listing()))
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, table.stop)
    status = 0 if options.tabulate else table.spend(rows)
    if text := table.tabulate():
        (table.out / "table.md").write_text(text)
        print(text, end="")
    if options.keep:
        table.keep(options.keep)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
