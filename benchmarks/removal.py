"""This benchmark measures what removal gains: `python benchmarks/removal.py > benchmarks/removal.md`.

It takes about half an hour on two CPU cores. Filters are cut by their L1 norm from networks at initialisation: speed does
not depend on training. The dense and the smaller network take turns in one process; the table has medians. "lanes" are the
MACs of a vector unit that computes 16 filters at once: every layer's filters rounded up to a multiple of 16, as the
deployed form has them.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import models
from deploy.folding import folded
from deploy.measure import timed
from models import save
from models.files import content
from pruning import Pruner, accounting
from pruning.removal import Removal, ungated
from runs.speed_lines import speed_range, too_wide
from settings.errors import guard

HEAD = (
    "network | residual | filters cut | parameters left | MACs left | file MB (dense) | gain in MACs | in lanes "
    "| PyTorch, batch 1 | batch 128 | onnxruntime, batch 1 | batch 128 | peak memory MB, batch 128 (dense)"
)


def lanes(network: models.Network) -> int:
    """The MACs of a network's deployed form, with the filters of each layer rounded up to a multiple of 16.

    In that form a branch writes the whole width of its stream.
    """
    form = folded(network)
    pixels = accounting.positions(form, 32)
    return sum(
        -(-unit.filters // 16) * 16 * unit.weight[:1].numel() * pixels[name] if unit.filters else 0
        for name, unit in form.all_units.items()
    )


def measure(name: str, residual: str, rate: float, round_to: int, path: Path) -> dict:
    """Prune a network, write it to `path`, time it beside the dense one; returns the row, pairs being (smaller, dense)."""
    torch.manual_seed(0)
    network = models.build(name)
    Pruner(network, rate=rate, residual=residual, round_to=round_to).update(rate)
    network.eval()
    whole, smaller = ungated(network), Removal(network).compact()
    dense, kept = accounting.dense(whole, 32), accounting.dense(smaller, 32)
    card = models.Card(name, [str(n) for n in range(10)], 32, [0.0] * 3, [1.0] * 3)
    file = {"file": str(path), "bytes": save(path, smaller, card), "dense_bytes": len(content(whole, card))}
    return {
        "network": name,
        "residual": residual,
        "rate": rate,
        "round_to": round_to,
        "filters": [kept.filters, dense.filters],
        "parameters": [kept.parameters, dense.parameters],
        "macs": [kept.macs, dense.macs],
        "lanes": [lanes(smaller), lanes(whole)],
        "bytes": [file["bytes"], file["dense_bytes"]],
        "speed": timed(whole, smaller, 32, "cpu"),
    }


def line(row: dict) -> str:
    """The cells of a row of the table."""

    def percent(what: str) -> str:
        return f"{100 * row[what][0] / row[what][1]:.2f} %"

    gain = row["macs"][1] / row["macs"][0]
    speed = {(entry["engine"], entry["batch"]): entry for entry in row["speed"]}
    cells = [row["network"], row["residual"] + (f", multiples of {row['round_to']}" if row["round_to"] > 1 else "")]
    cells += [f"{100 - 100 * row['filters'][0] / row['filters'][1]:.1f} %", percent("parameters"), percent("macs")]
    cells += [f"{row['bytes'][0] / 1e6:.2f} ({row['bytes'][1] / 1e6:.2f})", f"{gain:.2f}"]
    cells += [f"{row['lanes'][1] / row['lanes'][0]:.2f}"]
    for engine in ("PyTorch", "onnxruntime"):
        for batch in (1, 128):
            took = speed[engine, batch]
            faster = took["dense"]["ms"] / took["compact"]["ms"]
            busy = "; TOO WIDE, {:.2f} to {:.2f}".format(*speed_range(took)) if too_wide(took) else ""
            cells.append(f"{faster:.2f} ({took['compact']['ms']:.2f} ms; {faster / gain:.2f}{busy})")
    memory = speed["PyTorch", 128]
    cells.append(f"{memory['compact']['peak_mb']:.1f} ({memory['dense']['peak_mb']:.1f})")
    return " | ".join(cells)


def main() -> None:
    """Measure every network, and print a row of the table for each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", default=["resnet56", "vgg16", "resnet50"])
    parser.add_argument("--rates", nargs="+", type=float, default=[0.3, 0.5, 0.6, 0.7, 0.9])
    parser.add_argument("--residual", nargs="+", default=["free", "grouped"])
    parser.add_argument("--round_to", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/removal.jsonl"), help="where the rows are added")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, batch norm folded. Latency cells: times as")
    print("fast as dense (milliseconds; the gain as a fraction of the gain in MACs).\n")
    print(f"| {HEAD} |\n|{'---|' * (HEAD.count('|') + 1)}", flush=True)
    for name in options.networks:
        for residual in options.residual[: 1 if name.startswith("vgg") else 2]:
            for rate in options.rates:
                row = measure(name, residual, rate, options.round_to, options.json.with_suffix(".model.pt"))
                with options.json.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"| {line(row)} |", flush=True)
    options.json.with_suffix(".model.pt").unlink()


if __name__ == "__main__":
    with guard("removal.py"):
        main()
