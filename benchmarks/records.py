"""This file keeps the results of a comparison that may be stopped, a line of JSON each, and gathers them over seeds."""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from runs.records import Run, read_run
from settings.errors import Failed, Refused

ROOT = Path(__file__).resolve().parent.parent


def records_in(path: Path, asked: dict | None = None) -> list[dict]:
    """The results in a file, of which a line that was broken off is no result. Exits if they were asked for otherwise.

    `asked` is what every result of the comparison has in common; None where they have nothing.
    """
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    if asked is not None and any(record["asked"] != asked for record in records):
        raise SystemExit(
            f"{Path(sys.argv[0]).name}: error: '{path}' was begun otherwise, see its \"asked\": name other --records"
        )
    return records


def found(records: list[dict], place: dict) -> dict | None:
    """The result of this place, such as a method and a seed; None where there is none yet."""
    return next((record for record in records if place.items() <= record.items()), None)


def keep(records: list[dict], record: dict, path: Path) -> None:
    """Add a result to the records and, as a line, to their file; tell it on stderr."""
    records.append(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    print(json.dumps({name: value for name, value in record.items() if name != "asked"}), file=sys.stderr, flush=True)


def measured_apart(script: str, argv: list[str], place: dict) -> dict:
    """What a script measures at this place, from a process of its own: its memory and its time are no other's."""
    command = [sys.executable, script, *argv, "--only", json.dumps(place)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def run_in(folder: Path, flags: list[str], machine: list[str]) -> Run:
    """Begin the run of modeling.py in a folder by these `flags`, or go on with it, to its end; `machine` are the flags of both.

    Raises Refused or Failed, with the last line that the run said, if it does not end well.
    """
    begun = (folder / "config.json").exists()
    words = ["--resume", str(folder)] if begun else [*flags, "--out_dir", str(folder)]
    command = [sys.executable, str(ROOT / "modeling.py"), *words, *machine]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    if ended.returncode:
        said = [line for line in ended.stderr.splitlines() if line] or [f"status {ended.returncode}"]
        raise (Refused if ended.returncode == 2 else Failed)(f"the run in '{folder}': {said[-1]}")
    return read_run(folder)


def ended(folder: Path) -> Run:
    """The run in a folder. Raises Refused where it has not ended, and as `read_run`."""
    run = read_run(folder)
    if run.summary is None:
        raise Refused(f"'{folder}' has not ended: go on with it by modeling.py --resume {folder}")
    return run


def machine_flags(options) -> list[str]:
    """The flags that a run takes when it begins and when it goes on: where it runs, and where its data is."""
    given = {name: getattr(options, name) for name in ("device", "threads", "data_dir")}
    return ["--quiet", *(word for name, value in given.items() if value is not None for word in (f"--{name}", str(value)))]


def comparison_parser(description: str, name: str, seeds: bool = True) -> argparse.ArgumentParser:
    """A parser with the flags of every comparison on a trained network; its records and its table have this name."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("run", help="folder of a dense run")
    parser.add_argument("--weight_decay", type=float, default=5e-4)
    if seeds:
        parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data_dir", help="default: the run's own")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--records", type=Path, default=Path(f"result/{name}.jsonl"))
    parser.add_argument("--table", type=Path, default=Path(f"benchmarks/{name}.md"))
    return parser


def retraining_flags(options) -> list[str]:
    """The flags of a run that cuts RUN's network at once and trains what is left for an epoch; for a method, add its own."""
    flags = ["--init", options.run, "--prune_phase", "init", "--epochs", "1", "--lr", str(options.lr), "--lr_schedule", "cosine"]
    return [*flags, "--weight_decay", str(options.weight_decay), *machine_flags(options)]


def page_of_cuts(title: str, run: str, records: list[dict], table: str, *, script: str, timed: str) -> str:
    """The page of a script that cuts a run's network once and trains it alike: the command, what was measured, the table.

    `timed` says which work took the seconds in the table.
    """
    what, steps = conditions(records[0]["asked"]), ", ".join(sorted({str(record["steps"]) for record in records}))
    return (
        f"# {title}\n\n`python benchmarks/{script} {run}` wrote this page.\n"
        f"Every row is the same network ({what}), cut once, measured, and trained alike for {steps} steps.\n"
        f"Means over seeds, with the standard deviation; seconds are those of {timed} alone.\n\n{table}\n"
    )


def over_seeds(records: list[dict], *names: str) -> Iterator[list[dict]]:
    """The records in groups that agree in these names, in the order in which the groups begin."""
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        groups.setdefault(tuple(record[name] for name in names), []).append(record)
    yield from groups.values()


def column(records: list[dict], name: str, scale: float = 1) -> list[float]:
    """The values of this name, times `scale`, without those that are None."""
    return [scale * record[name] for record in records if record[name] is not None]


def conditions(asked: dict) -> str:
    """What was asked, as a page tells it."""
    return ", ".join(f"{name} {value}" for name, value in asked.items() if value is not None)
