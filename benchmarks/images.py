"""Do the images matter? `python benchmarks/images.py RUN --data_dir data > images.md`.

Every criterion that reads images scores one trained network on two samples that share no image, of a few sizes. The table
has Spearman's correlation between the two, the mean over layers, and the fraction of the half that each layer would lose
which both samples agree on (one half by chance).
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from pruning.context import Context, lift
from runs.tables import write_table
from settings.arguments import parse
from settings.registry import CRITERIA
from training.experiment import start


def agreement(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Spearman's correlation, ties by index, and the common part of the lower halves."""
    orders = [scores.argsort(stable=True) for scores in (first, second)]
    ranks = [order.argsort().double() for order in orders]
    low = [set(order[: len(order) // 2].tolist()) for order in orders]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1]), len(low[0] & low[1]) / len(low[0])


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", help="folder of a dense run")
    parser.add_argument("--images", type=int, nargs="+", default=[32, 128, 512])
    readers = [name for name in CRITERIA.entries if "reads images" in CRITERIA.entries[name].traits]
    parser.add_argument("--criteria", nargs="+", default=[name for name in readers if name not in ("LcP", "zero_fraction")])
    options, rest = parser.parse_known_args(argv)
    run = start(parse(["--init", options.run, "--prune_type", "structured", "--quiet", *rest]))
    order = torch.randperm(len(run.task.train), generator=torch.Generator().manual_seed(0))

    def scores(criterion: str, images: Tensor) -> dict[str, Tensor]:
        sample = run.task.train.pick(images.to(run.engine.device))
        context = Context(run.model, run.pruner.granularity.groups, lambda: run.task.ordered(sample, 128), 0)
        return lift(CRITERIA.get(criterion))(run.pruner.units, context)

    rows = []
    for criterion in options.criteria:
        row = {"criterion": criterion}
        for count in options.images:
            one, other = (scores(criterion, order[start : start + count]) for start in (0, count))
            found = torch.tensor([agreement(one[name].cpu(), other[name].cpu()) for name in one]).mean(0)
            row |= {f"{count} images, Spearman": f"{found[0]:.3f}", f"{count}, agreed": f"{found[1]:.3f}"}
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    print(write_table(rows, "markdown"))


if __name__ == "__main__":
    main(sys.argv[1:])
