"""This benchmark tells whether it matters which images a criterion sees: `python benchmarks/images.py RUN > images.md`.

Every criterion that reads images scores the network of a run on two samples that have no image in common, of a few sizes.
The table has Spearman's correlation between the two, the mean over layers. Beside it, each sample would cut half of every
layer: the table has the fraction of that half in which both samples agree (one half by chance).
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.records import ended
from pruning.context import Context, lift
from runs.tables import write_table
from settings.arguments import parse
from settings.earlier import as_measured_on
from settings.errors import guard
from settings.registry import CRITERIA
from training.experiment import start


def agreement(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Spearman's correlation of two score tensors, ties by index, and the fraction of the lower halves in common."""
    orders = [scores.argsort(stable=True) for scores in (first, second)]
    ranks = [order.argsort().double() for order in orders]
    low = [set(order[: len(order) // 2].tolist()) for order in orders]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1]), len(low[0] & low[1]) / len(low[0])


def main(argv: list[str]) -> None:
    """Score the network of the run on pairs of samples, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", help="folder of a dense run")
    parser.add_argument("--images", type=int, nargs="+", default=[32, 128, 512])
    readers = [name for name in CRITERIA.entries if "reads images" in CRITERIA.entries[name].traits]
    parser.add_argument("--criteria", nargs="+", default=[name for name in readers if name not in ("LcP", "zero_fraction")])
    options, rest = parser.parse_known_args(argv)
    ended(Path(options.run))
    settings = parse(["--init", options.run, "--prune_type", "structured", "--quiet", *rest])
    run = start(as_measured_on(settings, options.run))
    order = torch.randperm(len(run.task.train), generator=torch.Generator().manual_seed(0))

    def scores(criterion: str, images: Tensor) -> dict[str, Tensor]:
        """The scores of every unit, by its name, on the training images with these indices."""
        sample = run.task.train.pick(images.to(run.engine.device))
        context = Context(run.model, run.pruner.granularity.groups, lambda: run.task.ordered(sample, 128), 0)
        return lift(CRITERIA.get(criterion))(run.pruner.units, context)

    rows = []
    for criterion in options.criteria:
        row = {"criterion": criterion}
        for count in options.images:
            first, second = (scores(criterion, order[start : start + count]) for start in (0, count))
            means = torch.tensor([agreement(first[name].cpu(), second[name].cpu()) for name in first]).mean(0)
            row |= {f"{count} images, Spearman": f"{means[0]:.3f}", f"{count}, agreed": f"{means[1]:.3f}"}
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    print(write_table(rows, "markdown"))


if __name__ == "__main__":
    with guard("images.py"):
        main(sys.argv[1:])
