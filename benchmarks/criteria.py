"""This benchmark compares all criteria on one trained network: `python benchmarks/criteria.py RUN > criteria.md`.

RUN is the folder of a dense run of modeling.py. Each criterion cuts its network once to the same fraction of the MACs;
what remains is fine-tuned alike, with each of the learning rates. The held-out images choose between those, and the test
accuracy is that of the chosen one. Scoring is timed in a process of its own. A comparison that was stopped goes on: each
result is a file in --out.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tqdm import tqdm

from benchmarks.records import ended
from modeling import start, train_epoch
from pruning import accounting
from pruning.removal import Removal
from runs.figures import COLOURS
from runs.tables import write_table
from settings.arguments import parse
from settings.earlier import as_measured_on
from settings.errors import guard
from settings.registry import CRITERIA

# criteria with options that make another method of them
MORE = ["Taylor2019(at='filter')", "LcP(learn='scale_and_offset')", "FPGM(by_norm=0.1)"]


def settings_for(options, criterion: str, rate: float):
    """The settings that cut RUN's network by this criterion and fine-tune it at this learning rate."""
    typed = ["--init", options.run, "--device", options.device, "--quiet"]
    typed += ["--prune_type", "structured", "--target_macs", str(options.macs), "--prune_imp", criterion]
    typed += ["--prune_phase", "init", "--epochs", str(options.epochs), "--lr", str(rate), "--lr_schedule", "cosine"]
    typed += ["--weight_decay", str(options.weight_decay)]
    typed += ["--prune_scope", options.scope] if options.scope else []
    for name in ("dataset", "data_dir", "image_size", "batch_size", "threads"):
        if (value := getattr(options, name)) is not None:
            typed += [f"--{name}", str(value)]
    return as_measured_on(parse(typed), options.run)


def score(options, criterion: str) -> dict:
    """The seconds that the scores alone take, and the memory that they add in GB; call it in a process of its own."""
    run = start(settings_for(options, criterion, 0.01))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    run.pruner.scores()
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": round(seconds, 2), "more GB": round((after - before) / 2**20, 2), "GB": round(after / 2**20, 2)}


def tune(options, criterion: str, rate: float) -> dict:
    """Cut by this criterion, remove what is cut, fine-tune at this rate; returns accuracies in % and what was kept."""
    run = start(settings_for(options, criterion, rate))
    split = run.task.valid or run.task.test
    metric = run.task.metric
    run.pruner.update(run.settings.pruning.prune_rate)
    result = {"before": run.evaluate(split)[metric]}
    kept = accounting.kept_filters(run.model)
    run.go_on_with(Removal(run.model).compact())
    smaller = accounting.dense(run.model, run.task.inputs[1])
    run.steps = min(run.steps, options.steps or run.steps)
    began = time.perf_counter()
    with tqdm(disable=True) as bar:
        for epoch in range(options.epochs):
            train_epoch(run, epoch, bar)
    result |= {"after": run.evaluate(split)[metric], "test": run.evaluate(run.task.test)[metric]}
    result |= {"rate": rate, "tuning seconds": round(time.perf_counter() - began, 1), "kept": kept}
    return result | {"parameters": smaller.parameters / run.whole.parameters, "macs": smaller.macs / run.whole.macs}


def file_of(options, criterion: str, what) -> Path:
    """The file in --out that holds what came of this criterion, at a learning rate or in scoring."""
    name = "".join(letter if letter.isalnum() else "_" for letter in criterion).strip("_")
    return options.out / f"{name}-{what}.json"


def done_once(file: Path, work) -> dict:
    """The result in the file; where there is none, `work` is done first, and what it returns is written to the file."""
    if not file.exists():
        result = work()
        file.write_text(json.dumps(result) + "\n", encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def scored_apart(argv: list[str], criterion: str) -> dict:
    """What `score` returns, from a process of its own."""
    command = [sys.executable, __file__, *argv, "--only_score", criterion]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def row(options, argv: list[str], criterion: str) -> dict:
    """The criterion's row of the table, at the learning rate that the held-out images choose."""
    scoring = done_once(file_of(options, criterion, "scoring"), lambda: scored_apart(argv, criterion))
    tried = [
        done_once(file_of(options, criterion, rate), lambda rate=rate: tune(options, criterion, rate)) for rate in options.lr
    ]
    best = max(tried, key=lambda result: result["after"])
    row = {"criterion": criterion, "held out, cut %": best["before"], "held out, tuned %": best["after"], "test %": best["test"]}
    row |= {
        "learning rate": f"{best['rate']:g}",
        "parameters left %": 100 * best["parameters"],
        "MACs left %": 100 * best["macs"],
    }
    return row | {"scoring s": scoring["seconds"], "more GB": scoring["more GB"]}


def draw(rows: list[dict], path: Path) -> None:
    """Write a figure of the held-out accuracy, as cut and as tuned, the best criterion on top, beside the random control."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = sorted(rows, key=lambda row: row["held out, tuned %"])
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.28 * len(rows)), layout="constrained")
    names = [row["criterion"] for row in rows]
    for what, colour, marker in (("held out, cut %", COLOURS[4], "s"), ("held out, tuned %", COLOURS[0], "o")):
        axes.plot(
            [row[what] for row in rows], names, color=colour, marker=marker, linestyle="none", label=what.removesuffix(" %")
        )
    for row in rows:
        if row["criterion"] == "random":
            axes.axvline(row["held out, tuned %"], color="#999999", linewidth=1, label="random, tuned")
    axes.set_xlabel("held-out accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main(argv: list[str]) -> None:
    """Measure what is not yet in --out, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", help="folder of a dense run")
    parser.add_argument("--criteria", nargs="+", default=[*CRITERIA.entries, *MORE])
    parser.add_argument("--scope", help="of all (default each criterion's own)")
    parser.add_argument("--macs", type=float, default=0.5, help="fraction left (default 0.5)")
    parser.add_argument("--epochs", type=int, default=1, help="of fine-tuning (default 1)")
    parser.add_argument("--steps", type=int, help="of an epoch, the first so many (default all)")
    parser.add_argument("--lr", type=float, nargs="+", default=[0.01, 0.05], help="learning rates tried (default 0.01 0.05)")
    parser.add_argument("--weight_decay", type=float, default=5e-4)
    for name, kind in (("dataset", str), ("data_dir", str), ("image_size", int), ("batch_size", int)):
        parser.add_argument(f"--{name}", type=kind, help="default: the run's own")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("result/criteria"))
    parser.add_argument("--plot", type=Path, metavar="PNG")
    parser.add_argument("--only_score", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.only_score:
        print(json.dumps(score(options, options.only_score)))
        return
    ended(Path(options.run))  # what the run cannot be used with is refused at once
    settings_for(options, options.criteria[0], options.lr[0])
    options.out.mkdir(parents=True, exist_ok=True)
    asked = {name: value for name, value in vars(options).items() if name not in ("criteria", "lr", "out", "plot", "threads")}
    if done_once(options.out / "options.json", lambda: asked) != asked:
        raise SystemExit(f"criteria.py: error: '{options.out}' was begun otherwise, see options.json: name another --out")
    rows = []
    for criterion in options.criteria:
        rows.append(row(options, argv, criterion))
        print(f"{criterion}: {rows[-1]}", file=sys.stderr, flush=True)
    print(write_table(rows, "markdown"))
    if options.plot:
        draw(rows, options.plot)


if __name__ == "__main__":
    with guard("criteria.py"):
        main(sys.argv[1:])
