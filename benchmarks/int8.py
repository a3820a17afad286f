"""This benchmark compares networks in 8 bits with float32: `python benchmarks/int8.py --networks resnet20 vgg16 --runs RUN`.

Both are .onnx files with batch norm folded, and take turns in onnxruntime on the CPU, with batches of 1 and 128 images. A
network that is named is fresh, since speed does not depend on training, whole and with filters taken out, and its ranges
are those of noise. RUN is the folder of a run of modeling.py: of its last network, with what is masked taken out, the
accuracies on the test images are told too, for each of --forms. Each result is a line of --records, and a comparison that
was stopped goes on; the page is written to --table. Measure on a machine that does nothing else.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import torch

import models
from benchmarks.records import ended, found, keep, records_in
from deploy.making import beside_float32, compared
from deploy.measure import card_of, plain
from modeling import start
from pruning import Pruner
from pruning.removal import Removal
from runs.folder import load_checkpoint
from runs.speed_lines import speed_range, too_wide
from runs.tables import write_table
from settings.arguments import parse
from settings.errors import guard
from settings.registry import FORMS
from training.experiment import Experiment

SIZE = 32
NETWORKS = ["resnet20", "resnet56", "vgg16", "mobilenetv2"]
FRESH = "int8(calibrate=1)"  # the form of a network that is not trained


class Noise:
    """What a form asks of a task, for networks that are not trained: batches of noise."""

    @staticmethod
    def sample(batches: int) -> Iterator[tuple[torch.Tensor, None]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(batches):
            yield torch.randn(64, 3, SIZE, SIZE, generator=generator), None


def measured(network: models.Network, form: str, task, card: models.Card, run: Experiment | None = None) -> dict:
    """Make a form of a network: its bytes, for an .onnx file beside float32 with the latency, and with a `run` accuracies."""
    with tempfile.TemporaryDirectory() as folder:
        made = FORMS.get(form)(network, task)
        path = Path(folder) / f"form{made.suffix}"
        result = {"bytes": made.save(path, card)}
        if run is not None:
            result |= compared(network, made.read(path), task, run.engine.device)
        return result | (beside_float32(network, path, card, takes_bytes=True) if path.suffix == ".onnx" else {})


def fresh_network(name: str) -> tuple[models.Network, models.Card]:
    """A network with fresh weights, and its card."""
    torch.manual_seed(0)
    return models.build(name).eval(), models.Card(name, [str(number) for number in range(10)], SIZE, [127.5] * 3, [127.5] * 3)


def of_network(name: str, rate: float) -> dict:
    """The result of a network with fresh weights, of which this fraction of the filters is taken out by their L1 norm."""
    network, card = fresh_network(name)
    if rate:
        Pruner(network, rate=rate).update(rate)
        network = Removal(network.eval()).compact()
    return measured(network, FRESH, Noise, card)


def last_network(folder: Path, data_dir: str | None = None) -> tuple[models.Network, Experiment, models.Card]:
    """A run's last network, without what is masked, the run itself, and the network's card; Refused before it has ended."""
    ended(folder)
    data = ["--data_dir", data_dir] if data_dir else []
    run = start(parse(["--resume", str(folder), "--quiet", *data]), state=load_checkpoint(folder / "checkpoint.pt"))
    masks_filters = any(unit.gate is not None and unit.gate.by_filter for unit in run.model.all_units.values())
    network = Removal(run.model.eval()).compact() if masks_filters else plain(run.model)
    return network, run, card_of(run, {})


def of_run(folder: Path, form: str, data_dir: str | None = None) -> dict:
    """The result of a run's last network."""
    network, run, card = last_network(folder, data_dir)
    return measured(network, form, run.task, card, run)


def table(records: list[dict]) -> str:
    """The table of all results, a row each."""
    rows = []
    for record in records:
        row = {"network": record["network"], "filters cut": f"{100 * record['rate']:g} %" if "rate" in record else "-"}
        row["form"] = record["form"]
        row |= {"float32 MB": f"{record['float_bytes'] / 1e6:.3f}", "int8 MB": f"{record['bytes'] / 1e6:.3f}"}
        row["times smaller"] = f"{record['float_bytes'] / record['bytes']:.2f}"
        for entry in record["speed"]:
            own, other = entry["form"]["ms"], entry["float32"]["ms"]
            busy = "; TOO WIDE, {:.2f} to {:.2f}".format(*speed_range(entry, "form", "float32"))
            busy = busy if too_wide(entry, "form", "float32") else ""
            row[f"times as fast, batch {entry['batch']}"] = f"{other / own:.2f} ({own:.2f} of {other:.2f} ms{busy})"
        for name, words in (("before", "float32 %"), ("after", "int8 %")):
            row[words] = f"{record[name]:.2f}" if name in record else "-"
        row["the same of all"] = f"{record['same']} of {record['images']}" if "same" in record else "-"
        rows.append(row)
    return write_table(rows, "markdown")


def page(records: list[dict], asked: dict) -> str:
    """The page: the command, what was measured, the table."""
    return (
        "# Networks in 8 bits\n\n`python benchmarks/int8.py` wrote this page. Both files have batch norm folded; float32 is the\n"
        "form that `--export` writes. They took turns in onnxruntime; latencies are medians, in brackets those of 8 bits and of\n"
        f"float32. Threads: {asked['threads']}. Accuracies are of trained networks on their test images.\n\n{table(records)}\n"
    )


def main(argv: list[str]) -> None:
    """Measure what is not yet in --records, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="*", default=NETWORKS, help=f"fresh ones (default {' '.join(NETWORKS)})")
    parser.add_argument("--rates", nargs="+", type=float, default=[0.0, 0.5], help="of their filters cut (default 0 0.5)")
    parser.add_argument("--runs", nargs="*", type=Path, default=[], metavar="RUN", help="folders of runs")
    parser.add_argument("--forms", nargs="+", default=["int8"], help="of the runs' networks (default int8)")
    parser.add_argument("--threads", type=int, help="default: torch's choice")
    parser.add_argument("--records", type=Path, default=Path("result/int8.jsonl"))
    parser.add_argument("--table", type=Path, default=Path("benchmarks/int8.md"))
    options = parser.parse_args(argv)
    for form in options.forms:
        FORMS.check(form)
    if options.threads:
        torch.set_num_threads(options.threads)
    asked = {"threads": torch.get_num_threads()}
    records = records_in(options.records, asked)
    places = [{"network": name, "rate": rate, "form": FRESH} for name in options.networks for rate in options.rates]
    places += [{"network": str(folder), "form": form} for folder in options.runs for form in options.forms]
    for place in places:
        if not found(records, place):
            fresh = "rate" in place
            result = of_network(place["network"], place["rate"]) if fresh else of_run(Path(place["network"]), place["form"])
            keep(records, {**place, **result, "asked": asked}, options.records)
    options.table.write_text(page(records, asked), encoding="utf-8")
    print(table(records))


if __name__ == "__main__":
    with guard("int8.py"):
        main(sys.argv[1:])
