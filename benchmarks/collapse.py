"""This script cuts an untrained network by magnitude and by SynFlow, and prints which layers are then empty.

`python benchmarks/collapse.py` does so with VGG-16, as Tanaka et al., 2020 (arXiv 2006.05467) do: no training, no data.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import models
from pruning import Pruner
from pruning.collapse import collapse
from runs.tables import write_table

WAYS = (("L1", 1), ("SNIP", 1), ("SynFlow", 1), ("SynFlow", 100))


def cut(arch: str, criterion: str, rounds: int, exponent: float, seed: int) -> dict:
    """Cut a fresh network to 10^-exponent of its weights: the row of the table."""
    torch.manual_seed(seed)
    network, began = models.build(arch), time.monotonic()
    pruner = Pruner(
        network,
        prune_type="unstructured",
        criterion="SNIP(per_class=0)" if criterion == "SNIP" else criterion,
        scope="global(normalise='none', floor=0)",
        phase=f"init(rounds={rounds})",
        schedule="exponential",
        rate=1 - 10**-exponent,
        seed=seed,
    )
    noise = torch.randn(100, 3, 32, 32), torch.arange(100) % 10
    pruner.begin(1, 2, lambda: iter([noise]))
    pruner.before_step(0, 0)
    found = collapse(network)
    return {
        "criterion": criterion,
        "rounds": rounds,
        "compression": f"10^{exponent:g}",
        "weights left": pruner.entries - pruner.cut(),
        "fewest in a layer": min(int(gate.mask.sum()) for gate in pruner.gates.values()),
        "empty layers": len(found["empty"]),
        "a path is left": "yes" if found["connected"] else "no",
        "seconds": round(time.monotonic() - began, 1),
    }


def main(argv: list[str]) -> None:
    """Print the table for the network and the compressions that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="vgg16", help="the network (default vgg16)")
    parser.add_argument("--exponents", type=float, nargs="+", default=[2.5], help="of the compression 10^x (default 2.5)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    rows = [cut(options.arch, *way, exponent, options.seed) for exponent in options.exponents for way in WAYS]
    print(write_table(rows, "markdown"))


if __name__ == "__main__":
    main(sys.argv[1:])
