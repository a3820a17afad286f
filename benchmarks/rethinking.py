"""This benchmark asks whether a pruned network needs its weights: `python benchmarks/rethinking.py RUN`.

RUN is the folder of a dense run of modeling.py. It is cut once by the L1 norm and fine-tuned; the smaller network that this
leaves is also trained from fresh weights, with as many epochs (Scratch-E) and with the compute that the whole network would
have had (Scratch-B), after Liu et al., 2019 (arXiv 1810.05270). For each of them, and for each fraction of the MACs, seed 0
tries the learning rates, the held-out images choose one, and all seeds run with that. Every run is a command of modeling.py
with a folder of its own in --out. A comparison that was stopped goes on: each result is a line of --records, and a run that
was begun is resumed. The table is written to --table.
"""

import sys
from functools import partial
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.records import (  # noqa: E402
    column,
    comparison_parser,
    conditions,
    ended,
    found,
    keep,
    machine_flags,
    over_seeds,
    records_in,
    run_in,
)
from runs.records import read_run  # noqa: E402
from runs.tables import write_table  # noqa: E402
from settings.arguments import parse  # noqa: E402
from settings.earlier import saved_settings  # noqa: E402
from settings.errors import Refused, guard  # noqa: E402

METHODS = ["fine-tuning", "Scratch-E", "Scratch-B"]  # the first one makes the network that the others train
CHOOSING = 0  # the seed that tries every learning rate


def folder_of(options, macs: float, method: str, lr: float, seed: int) -> Path:
    """The folder of a run."""
    return options.out / f"{macs}-{method}-lr{lr}-seed{seed}"


def flags_of(options, macs: float, method: str, lr: float, seed: int) -> list[str]:
    """The flags that begin a run."""
    flags = ["--epochs", str(options.epochs), "--lr", str(lr), "--lr_schedule", "cosine", "--seed", str(seed)]
    flags += ["--weight_decay", str(options.weight_decay), "--batch_size", str(saved_settings(Path(options.run))["batch_size"])]
    if method == METHODS[0]:
        flags += ["--init", options.run, "--prune_type", "structured", "--prune_imp", "L1", "--prune_phase", "init"]
        return [*flags, "--target_macs", str(macs), "--compact"]
    smaller = folder_of(options, macs, METHODS[0], options.lrs[0], CHOOSING) / "model.pt"
    return [*flags, "--procedure", f"scratch(of={str(smaller)!r}, budget={method[-1]!r})"]


def check(options) -> None:
    """Raise Refused for what RUN cannot be used with, and for runs in --out that were begun otherwise."""
    run = Path(options.run)
    ended(run)
    if not saved_settings(run)["val_size"]:
        raise Refused(f"'{run}' holds no images out (--val_size), which choose the learning rate here")
    for macs, lr, seed in product(options.macs, options.lrs, {CHOOSING, *options.seeds}):
        parse([*flags_of(options, macs, METHODS[0], lr, seed), *machine_flags(options)])
        for method in METHODS:
            begun_alike(options, folder_of(options, macs, method, lr, seed))


def begun_alike(options, folder: Path) -> None:
    """Raise Refused for the folder of a run that was begun otherwise than it is asked for now."""
    if (then := saved_settings(folder)) is None:
        return
    now = {"epochs": options.epochs, "weight_decay": options.weight_decay, "init": options.run if then["init"] else None}
    for name, value in now.items():
        if then[name] != value:
            raise Refused(f"'{folder}' has --{name} {then[name]}, not {value}: name another --out")


def carry_out(options, place: dict) -> dict:
    """Begin the run of this place, or go on with it, and return what came of it as plain values. Raises as `run_in` does."""
    run = run_in(folder_of(options, **place), flags_of(options, **place), machine_flags(options))
    result = {"held out": run.summary["last"]["valid"][run.metric], "test": run.summary["test"][run.metric]}
    result |= {"macs left": run.share("macs"), "parameters left": run.share("parameters"), "epochs": len(run.rows)}
    return result | {"seconds": run.summary["seconds"]}


def table(chosen: list[dict]) -> str:
    """The table of the methods at each fraction of the MACs: means over seeds, with deviations."""
    rows = []
    for mine in over_seeds(chosen, "macs", "method"):
        of = partial(column, mine)
        size = {"MACs left %": of("macs left", 100), "parameters left %": of("parameters left", 100), "epochs": of("epochs")}
        row = {"network": mine[0]["method"]}
        row |= {title: sorted({*values}) for title, values in size.items()}  # one value each, as all seeds cut alike
        row["learning rate"] = f"{mine[0]['lr']:g}"
        rows.append(row | {"held out %": of("held out"), "test %": of("test"), "seeds": str(len(mine))})
    return write_table(rows, "markdown")


def page(options, chosen: list[dict]) -> str:
    """The page: the command and what was measured, then the table."""
    dense = read_run(Path(options.run))
    last, test, epochs = dense.summary["last"]["valid"][dense.metric], dense.summary["test"][dense.metric], len(dense.rows)
    tried = ", ".join(f"{lr:g}" for lr in options.lrs)
    return (
        f"# Does a pruned network need its weights?\n\n`python benchmarks/rethinking.py {options.run}` wrote this page.\n"
        f"The dense network has {last:.2f} % held out and {test:.2f} % on the test images, after {epochs} epochs. Of each\n"
        f"fraction of its MACs all rows are one architecture ({conditions(chosen[0]['asked'])}).\n"
        f"Learning rates tried with seed {CHOOSING}, and chosen on the held-out images: {tried}. Accuracy is that after the\n"
        f"last epoch; means over seeds, with the standard deviation.\n\n{table(chosen)}\n"
    )


def main(argv: list[str]) -> None:
    """Run what is not yet in --records, and write the table."""
    parser = comparison_parser(__doc__.split("\n")[0], "rethinking")
    parser.add_argument("--macs", type=float, nargs="+", default=[0.5, 0.3], help="fractions left (default 0.5 0.3)")
    parser.add_argument("--epochs", type=int, default=40, help="of each; Scratch-B's are more (default 40)")
    parser.add_argument("--lrs", type=float, nargs="+", default=[0.01, 0.05, 0.1], help="tried (default 0.01 0.05 0.1)")
    parser.add_argument("--out", type=Path, default=Path("result/rethinking"), help="the folder of the runs' folders")
    options = parser.parse_args(argv)
    check(options)
    asked = {name: getattr(options, name) for name in ("run", "epochs", "weight_decay", "device", "threads")}
    records = records_in(options.records, asked)

    def result(**place) -> dict:
        if not found(records, place):
            keep(records, {**place, **carry_out(options, place), "asked": asked}, options.records)
        return found(records, place)

    chosen = []
    for macs in options.macs:
        for method in METHODS:
            tried = [result(macs=macs, method=method, lr=lr, seed=CHOOSING) for lr in options.lrs]
            best = max(tried, key=lambda record: record["held out"])["lr"]
            chosen += [result(macs=macs, method=method, lr=best, seed=seed) for seed in options.seeds]
    options.table.write_text(page(options, chosen), encoding="utf-8")
    print(table(chosen))


if __name__ == "__main__":
    with guard("rethinking.py"):
        main(sys.argv[1:])
