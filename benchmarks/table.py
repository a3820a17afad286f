"""The paper's table: runs its rows in the order of spending, goes on where it was stopped, and writes table.md.

    ./run.sh table                     every row, ResNet-56, 300 epochs, into result/table
    ./run.sh table --minutes 10        a slice: exit status 75 while there is more to do, then 0
    ./run.sh table --row 3             one row by number or name: a job array has one run per GPU
    ./run.sh table --list              numbers, names, commands, what is done
    ./run.sh table --tabulate          the table from what there is
What stands behind -- goes to every run: ./run.sh table -- --device cpu --quiet. Several machines may share one --out.
"""

import argparse
import fcntl
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import report  # noqa: E402
from runs.figures import published_sparsity  # noqa: E402
from runs.records import Run, read_run  # noqa: E402
from runs.tables import write_table  # noqa: E402
from settings.arguments import parse  # noqa: E402
from settings.errors import Refused  # noqa: E402

SCRIPT = ROOT / "modeling.py"
AGAIN = 75  # EX_TEMPFAIL: call again
RATES = (0.6, 0.3, 0.4, 0.5, 0.7, 0.8, 0.9, 0.95)  # of the sweep; 0.6 has its own row of ours
PRUNED, DECORRELATED = "--prune_type structured --prune_rate {} --compact", "--reg reg_cov --odecay 0.7"
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


@dataclass
class Row:
    """One run: its flags, the line of the table it belongs to, and the row whose smaller network it trains anew."""

    name: str
    flags: list[str]
    line: str
    after: str | None = None


def plan(layers: int, seeds: list[int], out: str) -> list[Row]:
    """Every row, in the order of spending. ksc2020's own seed is 777, which stands for seed 0."""
    rows = []

    def add(line: str, flags: str, seed: int, depth: int = layers) -> None:
        typed = "" if line == "ksc2020" and seed == 0 else f"--seed {seed}"
        rows.append(Row(line + mark(seed), f"--layers {depth} {typed} {flags}".split(), line))

    def mark(seed: int) -> str:
        return f"_seed{seed}" if seed else ""

    both = f"{PRUNED.format(0.6)} {DECORRELATED}"
    for seed in seeds:
        add("ours_both", both, seed)
        add("ours_pruning", PRUNED.format(0.6), seed)
        add("ksc2020", "--recipe ksc2020", seed)
        add("dense", "--prune_type none", seed)
        add("decorrelation", f"--prune_type none {DECORRELATED}", seed)
        add("paper", "--recipe paper", seed)
    first = seeds[0]
    if layers == 56:
        for line, flags in (("ours_both", both), ("ours_pruning", PRUNED.format(0.6)), ("dense", "--prune_type none")):
            add(f"resnet50_{line}", flags, first, 50)
    for rate in RATES:
        percent, pruned = f"{100 * rate:g}", PRUNED.format(rate)
        ours = ("ours_both" if rate == 0.6 else f"ours_{percent}") + mark(first)
        if rate != 0.6:
            add(f"ours_{percent}", f"{pruned} {DECORRELATED}", first)
        add(f"random_{percent}", f"{pruned} --prune_imp random", first)
        add(f"fixed_{percent}", f"{pruned} --prune_phase init", first)
        flags = ["--scratch", f"{out}/{ours}/model.pt", "--seed", str(first)]
        rows.append(Row(f"scratch_{percent}{mark(first)}", flags, f"scratch_{percent}", ours))
    return rows


def lock(path: Path):
    """The file, held until it is closed here and in a child that inherited it; None where another process holds it."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def say(line: str) -> None:
    print(f"table: {line}", file=sys.stderr, flush=True)


def fail(message: str):
    """One line on stderr, then out."""
    say(f"error: {' '.join(message.split())}")
    raise SystemExit(2)


def short(path: Path) -> str:
    """A path as one would type it here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def public(value, words: dict[str, str]):
    """The same values with no path of this machine; `words` are paths, those with a slash at the end also beginnings."""
    if isinstance(value, dict):
        return {name: public(inner, words) for name, inner in value.items()}
    if isinstance(value, list):
        return [public(inner, words) for inner in value]
    if isinstance(value, str):
        for word, instead in words.items():
            ends = "" if word.endswith("/") else r"(?![^\s'\"/])"
            value = re.sub(rf"(?<![^\s'\"=]){re.escape(word)}{ends}", lambda _, instead=instead: instead, value)
    return value


class Table:
    """The rows in a folder, and the one run that is going on."""

    def __init__(self, options, extra: list[str]):
        self.out, self.epochs, self.extra = options.out.resolve(), options.epochs, extra
        self.rows = plan(options.layers, options.seeds, short(self.out))
        self.signal = None
        seconds = 60 * (options.minutes or float("inf"))
        self.end = time.monotonic() + seconds
        self.margin = min(max(10, 0.05 * seconds), 0.5 * seconds) if options.minutes else 0

    def read(self, row: Row, name: str) -> dict:
        try:
            return json.loads((self.out / row.name / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def finished(self, row: Row) -> bool:
        """Whether the run has ended, and with --compact was measured too: one stopped while measuring has a summary."""
        summary = self.read(row, "summary.json")
        return bool(summary) and ("speed" in summary or not self.read(row, "config.json").get("settings", {}).get("compact"))

    def epochs_done(self, row: Row) -> int:
        file = self.out / row.name / "metrics.jsonl"
        return file.read_text(encoding="utf-8").count("\n") if file.exists() else 0

    def begun(self, row: Row) -> bool:
        return (self.out / row.name / "config.json").exists()

    def command(self, row: Row) -> list[str]:
        """What begins the row's run, or goes on with it."""
        folder = short(self.out / row.name)
        if self.begun(row):
            return [short(SCRIPT), "--resume", folder, *self.extra]
        return [short(SCRIPT), *row.flags, "--epochs", str(self.epochs), "--out_dir", folder, *self.extra]

    def check(self, rows: list[Row]) -> None:
        """Refused for a row that modeling.py would refuse, or that began otherwise than it is asked for now."""
        for row in rows:
            if self.begun(row):
                there = self.read(row, "config.json").get("settings", {}).get("epochs")
                if there != self.epochs:
                    where = short(self.out / row.name)
                    raise Refused(f"'{where}' has --epochs {there}, not {self.epochs}: name another --out")
                same = row.flags[2:] if row.after else row.flags  # the folder may have moved since
                parse([*self.command(row)[1:], *same])
            elif row.after is None:
                parse(self.command(row)[1:])

    def late(self) -> bool:
        """Whether the slice is over, but for what a run needs to end after its step."""
        return time.monotonic() > self.end - self.margin

    def run(self, row: Row) -> str:
        """Run the row to its end, or until it is stopped: "finished", "stopped", "held" by another process, or "failed"."""
        folder, asked = self.out / row.name, None
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as files:
            if (own := lock(folder / ".table.lock")) is None:
                return "held"  # and its result.txt is left alone
            files.enter_context(own)
            if not self.free(row):
                return "held"
            if self.finished(row):  # by another machine, a moment ago
                return "finished"
            say(f"{row.name}: python {shlex.join(self.command(row))}")
            result = files.enter_context((folder / "result.txt").open("w"))
            # on a terminal the bar is worth more than a record of it
            errors = None if sys.stderr.isatty() else files.enter_context((folder / "stderr.txt").open("a"))
            # a session of its own: Ctrl-C reaches it once, through this program; the lock lasts as long as it does
            child = subprocess.Popen(
                [sys.executable, *self.command(row)],
                stdout=result,
                stderr=errors,
                pass_fds=[own.fileno()],
                start_new_session=True,
            )
            while child.poll() is None:
                wanted = self.signal or (signal.SIGTERM if self.late() else None)
                if wanted and not asked:
                    child.send_signal(wanted)
                    asked = wanted
                if time.monotonic() > self.end - 0.2 * self.margin:
                    child.kill()  # nothing is lost but the epoch that was begun, as by SIGTERM
                time.sleep(0.1)
        if child.returncode == 0:
            return "finished"
        if asked and child.returncode in (128 + asked, -asked, -signal.SIGKILL):
            return "stopped"
        if child.returncode == 2 and not self.free(row):
            return "held"
        lines = (folder / "stderr.txt").read_text(encoding="utf-8").splitlines() if errors else []
        say(f"{row.name} failed with status {child.returncode}{': ' + lines[-1] if lines else ''}")
        return "failed"

    def free(self, row: Row) -> bool:
        """Whether no run holds the folder (as runs.Folder does)."""
        held = lock(self.out / row.name / ".lock")
        if held:
            held.close()
        return held is not None

    def spend(self, rows: list[Row], again: str) -> int:
        """Run what is not finished; 0, 1 if a row failed, 75 if there is more to do, 128 + n after a signal."""
        bad, ran = False, 0
        for row in rows:
            if self.finished(row):
                continue
            if self.signal or self.late():
                break
            if row.after and not (self.out / row.after / "model.pt").exists():
                say(f"{row.name} waits for the smaller network of {row.after}")
                continue
            before = self.epochs_done(row)
            came = self.run(row)
            if came == "held":
                say(f"{row.name} is passed over: another process is writing to it")
                continue
            ran += 1
            bad |= came == "failed"
            # it had the whole slice; one that began later has the next one
            if came == "stopped" and not self.signal and ran == 1 and self.epochs_done(row) <= before:
                say(f"error: {row.name} got no further in a whole slice, and never will: an epoch needs longer --minutes")
                bad = True
        left = [row.name for row in rows if not self.finished(row)]
        if left:
            say(f"left: {', '.join(left)}; go on with {again}")
        return 128 + self.signal if self.signal else 1 if bad else AGAIN if left else 0

    def listing(self) -> Iterator[str]:
        for number, row in enumerate(self.rows):
            state = f"{self.epochs_done(row)} of {self.epochs} epochs" if self.begun(row) else "not begun"
            state = "finished" if self.finished(row) else state
            yield f"{number:3} {row.name:24} {state:18} python {shlex.join(self.command(row))}"

    def words(self, config: dict) -> dict[str, str]:
        """Paths of this machine, and what is said instead."""
        return {f"{self.out}/": "", f"{ROOT}/": "", config["settings"].get("data_dir") or "data": "data"}

    def tabulate(self) -> str:
        """The table from the run folders, published numbers beside ours, one line for the seeds of a row."""
        lines = []
        for line in dict.fromkeys(row.line for row in self.rows):
            runs = [read_run(self.out / row.name) for row in self.rows if row.line == line]
            for group in report.groups([run for run in runs if run and run.rows]):
                lines.append(self.table_line(line, group))
        return NOTE + write_table(lines, "markdown") + "\n" if lines else ""

    def table_line(self, line: str, runs: list[Run]) -> dict:
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

    def keep(self, place: Path) -> None:
        """Copy the records of finished rows, with no path of this machine."""
        for row in filter(self.finished, self.rows):
            words = self.words(self.read(row, "config.json"))
            (place / row.name).mkdir(parents=True, exist_ok=True)
            for name in ("config.json", "metrics.jsonl", "summary.json", "result.txt"):
                file = self.out / row.name / name
                if name in ("config.json", "summary.json"):
                    text = json.dumps(public(self.read(row, name), words), indent=1) + "\n"
                else:
                    text = public(file.read_text(encoding="utf-8"), words) if file.exists() else ""
                (place / row.name / name).write_text(text, encoding="utf-8")


def options_from(argv: list[str]):
    """What was typed, and what goes to every run."""
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        prog="run.sh table", description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.error = lambda message: fail(message + ("; flags of modeling.py go behind --" if "unrecognized" in message else ""))
    parser.add_argument("--layers", type=int, default=56, help="ResNet depth (default 56, with three rows of ResNet-50)")
    parser.add_argument("--epochs", type=int, default=300, help="default 300")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="default 0; the sweep has the first only")
    parser.add_argument("--out", type=Path, default=Path("result/table"), help="folder of the runs and of table.md")
    parser.add_argument("--data_dir", help="where CIFAR-10 is (default data)")
    parser.add_argument("--threads", type=int, help="CPU threads of a run")
    parser.add_argument("--minutes", type=float, help="stop before so long; the same command goes on")
    parser.add_argument("--row", help="number or name of the one row to run")
    parser.add_argument("--list", action="store_true", help="rows, commands, what is done; runs nothing")
    parser.add_argument("--tabulate", action="store_true", help="write the table from what there is; runs nothing")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="also copy the finished rows' records there")
    options, extra = parser.parse_args(argv[:cut]), argv[cut + 1 :]
    own = {
        "--layers",
        "--arch",
        "--epochs",
        "--seed",
        "--scratch",
        "--out_dir",
        "--resume",
        "--dry_run",
        "--evaluate",
        "--predict",
    }
    if taken := own & {word.split("=")[0] for word in extra}:
        fail(f"{min(taken)} is chosen by the table: not behind --")
    if options.minutes is not None and not 0 < options.minutes < float("inf"):
        fail(f"--minutes {options.minutes:g} is no time")
    options.seeds = list(dict.fromkeys(options.seeds))
    for name in ("threads", "data_dir"):
        if (value := getattr(options, name)) is not None:
            extra = [f"--{name}", str(value), *extra]
    return options, extra


def main(argv: list[str]) -> int:
    options, extra = options_from(argv)
    table = Table(options, extra)
    rows = [row for number, row in enumerate(table.rows) if options.row in (None, str(number), row.name)]
    if not rows:
        fail(f"no row '{options.row}': --list names 0 to {len(table.rows) - 1}")
    try:
        if not options.tabulate:
            table.check(rows)
        if options.list:
            print(*table.listing(), sep="\n")
            return 0
        table.out.mkdir(parents=True, exist_ok=True)
    except (Refused, OSError) as error:
        fail(str(error))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: setattr(table, "signal", number))
    status = 0 if options.tabulate else table.spend(rows, shlex.join(["./run.sh", "table", *argv]))
    if text := table.tabulate():
        (table.out / "table.md").write_text(text, encoding="utf-8")
        print(text, end="")
    elif options.tabulate:
        say(f"no run with a whole epoch in '{short(table.out)}'")
    if options.keep:
        table.keep(options.keep)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
