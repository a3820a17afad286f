"""This benchmark compares cuts of single weights by the Hessian with plain ones: `python benchmarks/hessian.py RUN`.

RUN is the folder of a dense run of modeling.py. Each method cuts the same fraction of its weights at once; the accuracy is
measured right after that and after equal training, for each seed in a process of its own, which tells the seconds of the cut
with its repair and the peak memory. A comparison that was stopped goes on: each result is a line of --records. The table is
written to --table. The seed decides which images are measured, what is cut at random, and the order of training.
"""

import argparse
import json
import resource
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tqdm import tqdm

from benchmarks.records import (
    column,
    comparison_parser,
    ended,
    found,
    keep,
    measured_apart,
    over_seeds,
    page_of_cuts,
    records_in,
    retraining_flags,
)
from modeling import start, train_epoch
from runs.tables import write_table
from settings.arguments import parse
from settings.earlier import as_measured_on
from settings.errors import guard

# a criterion, and what gives new values to what survives its cut; magnitude is L1 of single weights
METHODS = [
    *((criterion, "none") for criterion in ("random", "L1", "OBD", "OBS")),
    *(("L1", "hessian"), ("OBS", "hessian"), ("OBS", "hessian(steps=4)")),
]


def settings_for(options, rate: float, criterion: str, method: str, seed: int):
    """The settings that cut RUN's network at this rate by this criterion, repair it by this method, and train what is left."""
    typed = [*retraining_flags(options), "--seed", str(seed), "--prune_type", "unstructured", "--prune_rate", str(rate)]
    typed += ["--prune_imp", criterion, "--prune_scope", options.scope, "--reconstruct", method]
    return as_measured_on(parse(typed), options.run)


def measure(options, rate: float, criterion: str, method: str, seed: int) -> dict:
    """What one method gives with one seed, as plain values; call it in a process of its own."""
    run = start(settings_for(options, rate, criterion, method, seed))  # which cuts and updates, where something updates
    records = run.results.get("reconstruction", [])
    seconds = sum(record["seconds"] for record in records)
    if method == "none":
        began = time.perf_counter()
        run.pruner.before_step(0, 0)
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    split, metric = run.task.valid or run.task.test, run.task.metric
    result = {"cut": run.evaluate(split)[metric], "weights": 1 - run.pruner.cut() / run.pruner.entries}
    run.steps = min(run.steps, options.steps or run.steps)
    with tqdm(disable=True) as bar:
        train_epoch(run, 0, bar)
    result |= {"trained": run.evaluate(split)[metric], "test": run.evaluate(run.task.test)[metric], "steps": run.steps}
    return result | {"records": records, "cut seconds": round(seconds, 2), "peak GB": round(peak, 2)}


def table(records: list[dict]) -> str:
    """The table of the methods at each rate: means over seeds, with deviations."""
    rows = []
    for mine in over_seeds(sorted(records, key=_rate), "rate", "criterion", "method"):
        of = partial(column, mine)
        row = {"criterion": mine[0]["criterion"], "survivors by": mine[0]["method"], "weights left %": of("weights", 100)}
        row |= {"held out, cut %": of("cut"), "held out, trained %": of("trained"), "test %": of("test")}
        rows.append(row | {"cut and update s": of("cut seconds"), "peak GB": of("peak GB"), "seeds": str(len(mine))})
    return write_table(rows, "markdown")


def _rate(record: dict) -> float:
    return record["rate"]


def main(argv: list[str]) -> None:
    """Measure what is not yet in --records, and write the table."""
    parser = comparison_parser(__doc__.split("\n")[0], "hessian")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.9, 0.95], help="fractions cut (default 0.9 0.95)")
    parser.add_argument("--scope", default="global(normalise='none')", help="of all methods (default global(normalise='none'))")
    parser.add_argument("--steps", type=int, default=88, help="of training after the cut (default 88, at most an epoch)")
    parser.add_argument("--lr", type=float, default=0.01, help="its learning rate (default 0.01)")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.only:
        print(json.dumps(measure(options, **json.loads(options.only))))
        return
    ended(Path(options.run))  # what the run cannot be used with is refused at once
    for rate in options.rates:
        settings_for(options, rate, *METHODS[0], options.seeds[0])
    asked = {name: getattr(options, name) for name in ("run", "scope", "steps", "lr", "weight_decay", "device", "threads")}
    records = records_in(options.records, asked)
    places = [(seed, rate, *method) for seed in options.seeds for rate in options.rates for method in METHODS]
    for seed, rate, criterion, method in places:
        place = {"rate": rate, "criterion": criterion, "method": method, "seed": seed}
        if not found(records, place):
            keep(records, {**place, **measured_apart(__file__, argv, place), "asked": asked}, options.records)
    title = "Cuts of single weights by the Hessian"
    page = page_of_cuts(title, options.run, records, table(records), script="hessian.py", timed="cutting and updating")
    options.table.write_text(page, encoding="utf-8")
    print(table(records))


if __name__ == "__main__":
    with guard("hessian.py"):
        main(sys.argv[1:])
