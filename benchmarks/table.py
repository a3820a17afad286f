"""This benchmark makes the paper's table: it runs the rows, goes on where it was stopped, and writes table.md.

    ./run.sh table                     every row, ResNet-56, 300 epochs, into result/table
    ./run.sh table --minutes 10        a slice: exit status 75 while there is more to do, then 0
    ./run.sh table --row 3             one row by number or name: a job array has one run per GPU
    ./run.sh table --list              numbers, names, commands, what is done
    ./run.sh table --tabulate          the table from what there is
What stands behind -- goes to every run: ./run.sh table -- --device cpu --quiet. Several machines may share one --out.
"""

import argparse
import fcntl
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.table_records import Records  # noqa: E402
from benchmarks.table_rows import Row, plan  # noqa: E402
from settings.arguments import parse  # noqa: E402
from settings.errors import Refused, guard  # noqa: E402

SCRIPT = ROOT / "modeling.py"
AGAIN = 75  # EX_TEMPFAIL: call again


def lock(path: Path):
    """The file, locked until it is closed here and in a child that inherited it; None where another process holds the lock."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def say(line: str) -> None:
    """Print a line on stderr."""
    print(f"table: {line}", file=sys.stderr, flush=True)


def fail(message: str):
    """Print one line on stderr, and end the program with status 2."""
    say(f"error: {' '.join(message.split())}")
    raise SystemExit(2)


def short(path: Path) -> str:
    """The path as one types it in the current folder."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


class Table(Records):
    """The table in the folder --out: it knows its rows, runs them one at a time, and writes down what came of them."""

    def __init__(self, options, extra: list[str]):
        out = options.out.resolve()
        super().__init__(out, plan(options.layers, options.seeds, short(out)))
        self.epochs, self.extra = options.epochs, extra
        self.signal = None
        seconds = 60 * (options.minutes or float("inf"))
        self.end = time.monotonic() + seconds
        self.margin = min(max(10, 0.05 * seconds), 0.5 * seconds) if options.minutes else 0

    def command(self, row: Row) -> list[str]:
        """The command that begins the row's run, or goes on with it."""
        folder = short(self.out / row.name)
        if self.begun(row):
            return [short(SCRIPT), "--resume", folder, *self.extra]
        return [short(SCRIPT), *row.flags, "--epochs", str(self.epochs), "--out_dir", folder, *self.extra]

    def check(self, rows: list[Row]) -> None:
        """Raise Refused for a row that modeling.py would refuse, or that began otherwise than it is asked for now."""
        for row in rows:
            if self.begun(row):
                epochs = self.read(row, "config.json").get("settings", {}).get("epochs")
                if epochs != self.epochs:
                    where = short(self.out / row.name)
                    raise Refused(f"'{where}' has --epochs {epochs}, not {self.epochs}: name another --out")
                same = row.flags[2:] if row.scratch_of else row.flags  # the folder may have moved since
                parse([*self.command(row)[1:], *same])
            elif row.scratch_of is None:
                parse(self.command(row)[1:])

    def late(self) -> bool:
        """Whether the slice is over, but for the time that a run needs to end after its step."""
        return time.monotonic() > self.end - self.margin

    def run(self, row: Row) -> str:
        """Run the row to its end, or until it is stopped: "finished", "stopped", "held" by another process, or "failed"."""
        folder, asked = self.out / row.name, None
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as files:
            if (own := lock(folder / ".table.lock")) is None:
                return "held"  # before its result.txt is overwritten
            files.enter_context(own)
            if not self.free(row):
                return "held"
            if self.finished(row):  # another machine has finished it a moment ago
                return "finished"
            say(f"{row.name}: python {shlex.join(self.command(row))}")
            result = files.enter_context((folder / "result.txt").open("w"))
            # on a terminal the progress bar is shown, and not recorded
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
                    child.kill()  # as by SIGTERM, only the epoch that was begun is lost
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
        """Run the rows that are not finished; returns the exit status.

        It is 0, or 1 if a row failed, 75 if there is more to do, 128 + n after the signal n. `again` is the command that
        goes on.
        """
        bad, ran = False, 0
        for row in rows:
            if self.finished(row):
                continue
            if self.signal or self.late():
                break
            if row.scratch_of and not (self.out / row.scratch_of / "model.pt").exists():
                say(f"{row.name} waits for the smaller network of {row.scratch_of}")
                continue
            before = self.epochs_done(row)
            came = self.run(row)
            if came == "held":
                say(f"{row.name} is passed over: another process is writing to it")
                continue
            ran += 1
            bad |= came == "failed"
            # it had the whole slice, and the next one would be no longer; a row that began later has the next slice whole
            if came == "stopped" and not self.signal and ran == 1 and self.epochs_done(row) <= before:
                say(f"error: {row.name} got no further in a whole slice, and never will: an epoch needs longer --minutes")
                bad = True
        unfinished = [row.name for row in rows if not self.finished(row)]
        if unfinished:
            say(f"left: {', '.join(unfinished)}; go on with {again}")
        return 128 + self.signal if self.signal else 1 if bad else AGAIN if unfinished else 0

    def listing(self) -> Iterator[str]:
        """A line for each row: its number, its name, how far it is, and its command."""
        for number, row in enumerate(self.rows):
            state = f"{self.epochs_done(row)} of {self.epochs} epochs" if self.begun(row) else "not begun"
            state = "finished" if self.finished(row) else state
            yield f"{number:3} {row.name:24} {state:18} python {shlex.join(self.command(row))}"


def options_from(argv: list[str]):
    """The options of this program, and the flags behind -- that go to every run."""
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
    own = {"layers", "arch", "epochs", "seed", "scratch", "out_dir", "resume", "dry_run", "evaluate", "predict"}
    if taken := {f"--{name}" for name in own} & {word.split("=")[0] for word in extra}:
        fail(f"{min(taken)} is chosen by the table: not behind --")
    if options.minutes is not None and not 0 < options.minutes < float("inf"):
        fail(f"--minutes {options.minutes:g} is no time")
    options.seeds = list(dict.fromkeys(options.seeds))
    for name in ("threads", "data_dir"):
        if (value := getattr(options, name)) is not None:
            extra = [f"--{name}", str(value), *extra]
    return options, extra


def main(argv: list[str]) -> int:
    """Run, list or tabulate the rows; returns the exit status."""
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
    except BrokenPipeError:  # the reader of the list has gone: no fault of the command
        raise
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
    with guard("table"):
        sys.exit(main(sys.argv[1:]))
