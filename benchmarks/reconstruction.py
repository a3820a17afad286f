"""This benchmark compares what repairs a cut, on one trained network: `python benchmarks/reconstruction.py RUN`.

RUN is the folder of a dense run of modeling.py. Each method cuts its network to the same fraction of the MACs; its accuracy
is measured right after that and after equal training, for each seed in a process of its own, which tells the seconds of the
cut with its repair and the peak memory. A comparison that was stopped goes on: each result is a line of --records. The table
is written to --table. The seed decides the places and images that are sampled, and the order of training.
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
from pruning import accounting
from pruning.removal import Removal
from runs.tables import write_table
from settings.arguments import parse
from settings.earlier import as_measured_on
from settings.errors import guard

# a criterion, which says how many filters stay of each layer, and what repairs its cut
METHODS = [
    *(("L1", method) for method in ("thinet", "thinet(search='forward')", "thinet(target='original')", "lasso")),
    *((criterion, method) for criterion in ("L1", "Taylor2019", "random") for method in ("least_squares", "none")),
]


def settings_for(options, criterion: str, method: str, seed: int):
    """The settings that cut RUN's network by this criterion, repair it by this method, and train what is left."""
    typed = [*retraining_flags(options), "--seed", str(seed), "--prune_type", "structured", "--target_macs", str(options.macs)]
    typed += ["--prune_imp", criterion, "--reconstruct", method]
    return as_measured_on(parse(typed), options.run)


def measure(options, criterion: str, method: str, seed: int) -> dict:
    """What one method gives with one seed, as plain values; call it in a process of its own."""
    settings, began = settings_for(options, criterion, method, seed), time.perf_counter()
    run = start(settings)  # which cuts and repairs, where something repairs
    records = run.results.get("reconstruction", [])
    seconds = sum(record["seconds"] for record in records)
    if method == "none":
        began = time.perf_counter()
        run.pruner.update(run.pruner.rate)
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    split, metric = run.task.valid or run.task.test, run.task.metric
    result = {"cut": run.evaluate(split)[metric]}
    kept = accounting.kept_filters(run.model)
    run.go_on_with(Removal(run.model).compact())
    smaller = accounting.dense(run.model, run.task.inputs[1])
    run.steps = min(run.steps, options.steps or run.steps)
    with tqdm(disable=True) as bar:
        train_epoch(run, 0, bar)
    result |= {"trained": run.evaluate(split)[metric], "test": run.evaluate(run.task.test)[metric], "steps": run.steps}
    result |= {"macs": smaller.macs / run.whole.macs, "parameters": smaller.parameters / run.whole.parameters, "kept": kept}
    errors = [record["error"] for record in records if record["error"] is not None]
    result |= {"error": sum(errors) / len(errors) if errors else None}
    return result | {"repair seconds": round(seconds, 2), "peak GB": round(peak, 2)}


def table(records: list[dict]) -> str:
    """The table of the methods: means over seeds, with deviations."""
    rows = []
    for mine in over_seeds(records, "criterion", "method"):
        of = partial(column, mine)
        row = {"criterion": mine[0]["criterion"], "repaired by": mine[0]["method"]}
        row |= {"held out, cut %": of("cut"), "held out, trained %": of("trained"), "test %": of("test")}
        row |= {"mean error of a layer": of("error"), "MACs left %": of("macs", 100)}
        rows.append(row | {"cut and repair s": of("repair seconds"), "peak GB": of("peak GB"), "seeds": str(len(mine))})
    return write_table(rows, "markdown")


def main(argv: list[str]) -> None:
    """Measure what is not yet in --records, and write the table."""
    parser = comparison_parser(__doc__.split("\n")[0], "reconstruction")
    parser.add_argument("--macs", type=float, default=0.5, help="fraction left (default 0.5)")
    parser.add_argument("--steps", type=int, default=88, help="of training after the cut (default 88, at most an epoch)")
    parser.add_argument("--lr", type=float, default=0.01, help="its learning rate (default 0.01)")
    parser.add_argument("--methods", nargs="+", help="of these reconstructions alone")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.only:
        print(json.dumps(measure(options, **json.loads(options.only))))
        return
    ended(Path(options.run))  # what the run cannot be used with is refused at once
    settings_for(options, *METHODS[0], options.seeds[0])
    asked = {name: getattr(options, name) for name in ("run", "macs", "steps", "lr", "weight_decay", "device", "threads")}
    records = records_in(options.records, asked)
    for seed in options.seeds:
        for criterion, method in METHODS:
            place = {"criterion": criterion, "method": method, "seed": seed}
            if found(records, place) or (options.methods and method not in options.methods):
                continue
            keep(records, {**place, **measured_apart(__file__, argv, place), "asked": asked}, options.records)
    title = "What repairs a cut, on one trained network"
    page = page_of_cuts(title, options.run, records, table(records), script="reconstruction.py", timed="cutting and repairing")
    options.table.write_text(page, encoding="utf-8")
    print(table(records))


if __name__ == "__main__":
    with guard("reconstruction.py"):
        main(sys.argv[1:])
