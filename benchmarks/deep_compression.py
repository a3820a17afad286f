"""This benchmark tells what Deep Compression makes of pruned networks: `python benchmarks/deep_compression.py RUN ...`.

Each RUN is the folder of a run of modeling.py that has ended with `--form "deep_compression(...)"`. What its file holds is
read from it and from the run's records; the dense network is the one that the run's --init names, if it does. With --lrs
the form is also made anew at each of these learning rates of its values, and measured on the held-out images; --bits says
with how many bits. Each result is a line of --records, and a comparison that was stopped goes on; the page is written to
--table. Runs of one network with one form, such as of several seeds, are one row.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import numpy as np

import models
from benchmarks.records import column, found, keep, over_seeds, records_in
from deploy.measure import plain
from modeling import start
from models.coding import relative
from runs.folder import load_checkpoint
from runs.records import Run, read_run
from runs.tables import write_table
from settings.arguments import parse
from settings.errors import Failed, Refused, guard
from settings.registry import FORMS, parse_call
from training.evaluation import evaluate

FORM = "deep_compression"
PARTS = ("values", "indices", "code tables", "codebook", "biases", "batch norm", "header")
# what the paper reports (arXiv 1510.00149): weights left in %, accuracy in % before and after, times smaller by pruning and
# sharing, and by all three; None where it is not told apart
PUBLISHED = {
    "LeNet-300-100, MNIST": (8, 98.36, 98.42, 32, 40),
    "LeNet-5, MNIST": (8, 99.20, 99.26, 33, 39),
    "AlexNet, ImageNet": (11, None, None, 27, 35),
    "VGG-16, ImageNet": (7.5, None, None, None, 49),
}


def bits_of(form: str) -> dict[str, int]:
    """The bits of a form, by the names of its options; those that it does not name are at their defaults."""
    known, chosen = FORMS.entry(form).options, parse_call(form)[1]
    return {name: chosen.get(name, known[name].default) for name in ("conv_bits", "linear_bits", "index_bits")}


def ended(folder: Path) -> Run:
    """The run in a folder. Raises Refused where it has not ended with this form."""
    run = read_run(folder)
    if run.summary is None or parse_call(run.summary.get("form", {}).get("name", "none"))[0] != FORM:
        raise Refused(f"'{folder}' has no {FORM}: go on with it by modeling.py --resume {folder} --form {FORM}")
    return run


def dense_accuracy(folder: Path, run: Run) -> float | None:
    """The test accuracy of the run that --init names, where it is now or beside this one; None where it is not known."""
    if not (init := run.config["settings"].get("init")):
        return None
    beside, parents = folder.resolve().parent, (Path(init), Path(init).parent)
    for path in (*parents, *(beside / parent.name for parent in parents)):
        if (path / "summary.json").exists():
            return read_run(path).summary["test"][run.metric]
    return None


def measure(folder: Path) -> dict:
    """What the file of a run holds, as plain values."""
    run = ended(folder)
    told, settings = run.summary["form"], run.config["settings"]
    bits, fixed, layers = bits_of(told["name"]), dict(told["bits"]), {}
    fixed |= {"values": 0, "indices": 0, "code tables": 0}
    for name, unit in models.load(folder / f"{FORM}.pt").all_units.items():
        weight = unit.weight.detach().flatten().numpy()
        places = np.flatnonzero(weight)
        stored = len(relative(places, 2 ** bits["index_bits"])[0])
        fixed["values"] += stored * bits["linear_bits" if unit.is_linear else "conv_bits"]
        fixed["indices"] += stored * bits["index_bits"]
        own = sum(told["layers"][f"{name}.layer.weight"].values())
        layers[name] = {"weights": len(weight), "left": len(places), "stored": stored, "bits": own}
    return {
        "accuracy": {"dense": dense_accuracy(folder, run), "pruned": told["before"], "stored": told["after"]},
        "dense bytes": told["dense_bytes"],
        "bytes": told["bytes"],
        "bytes without Huffman": sum(fixed.values()) / 8,
        "bits": {part: told["bits"].get(part, 0) for part in PARTS},
        "layers": layers,
        "network": network_of(settings),
    }


def tried(folder: Path, form: str) -> dict:
    """The accuracy of a form on the held-out images, that of the pruned network, and by how much the loss rises.

    What cannot be measured is None, because no values are found at this rate.
    """
    settings = parse(["--resume", str(folder), "--quiet"])
    run = start(settings, state=load_checkpoint(folder / "checkpoint.pt"))
    task = run.task
    before = run.evaluate(task.valid)
    result = {"network": network_of(run.settings.flat), "held out": {"pruned": before[task.metric], "stored": None}, "rise": None}
    try:
        made = FORMS.get(form)(plain(run.model), task).network
    except Failed:  # at this rate the values do not stay finite
        return result

    def predict(inputs):
        with run.engine.autocast():
            return made(inputs)

    after = evaluate(made, task, task.valid, predict, run.engine.device)
    result["held out"]["stored"], result["rise"] = after[task.metric], after["loss"] - before["loss"]
    return result


def network_of(settings: dict) -> str:
    """The network and the data set of a run, as the tables name them."""
    return f"{settings['arch']}, {settings['dataset']}"


def sizes(records: list[dict]) -> str:
    """The table of networks, with the published ones: what is left, the accuracies, and how many times smaller the file is."""
    head = ["network", "of", "weights left %", "dense %", "pruned %", "stored %", "kB"]
    head += ["times smaller without Huffman", "times smaller", "runs"]
    rows = []
    for mine in over_seeds(records, "network", "form"):
        left = [100 * share(record["layers"].values()) for record in mine]
        accuracies = [column([record["accuracy"] for record in mine], when) for when in ("dense", "pruned", "stored")]
        smaller = [[record["dense bytes"] / record[name] for record in mine] for name in ("bytes without Huffman", "bytes")]
        own = [mine[0]["network"], mine[0]["form"], left, *accuracies, column(mine, "bytes", 1e-3), *smaller, str(len(mine))]
        rows.append(dict(zip(head, own, strict=True)))
    for network, (left, before, after, shared, coded) in PUBLISHED.items():
        own = [network, "published", left, before, "-", after, "-", shared, coded, "-"]
        rows.append(dict(zip(head, ("-" if value is None else value for value in own), strict=True)))
    return write_table(rows, "markdown")


def share(layers) -> float:
    """The fraction of the weights of some layers that is left."""
    return sum(layer["left"] for layer in layers) / sum(layer["weights"] for layer in layers)


def parts(records: list[dict]) -> str:
    """The table of the bits of each part, in % of all bits."""
    rows = []
    for mine in over_seeds(records, "network", "form"):
        of = [[100 * record["bits"][part] / (8 * record["bytes"]) for record in mine] for part in PARTS]
        row = {"network": mine[0]["network"], "bits": [sum(record["bits"].values()) for record in mine]}
        rows.append(row | {f"{part} %": own for part, own in zip(PARTS, of, strict=True)})
    return write_table(rows, "markdown")


def layers(records: list[dict]) -> str:
    """The table of what is left of each layer, and of the bits for each weight that is left."""
    rows = []
    for mine in over_seeds(records, "network", "form"):
        for name in mine[0]["layers"]:
            own = [record["layers"][name] for record in mine]
            row = {"network": mine[0]["network"], "layer": name, "weights": str(own[0]["weights"])}
            row["left %"] = [100 * layer["left"] / layer["weights"] for layer in own]
            row["zeros between %"] = [100 * (1 - layer["left"] / layer["stored"]) for layer in own if layer["stored"]]
            rows.append(row | {"bits a weight left": [layer["bits"] / layer["left"] for layer in own if layer["left"]]})
    return write_table(rows, "markdown")


def rates(records: list[dict]) -> str:
    """The table of the learning rates of the values."""
    rows = []
    for mine in over_seeds(records, "network", "conv_bits", "linear_bits", "lr"):
        row = {"network": mine[0]["network"], "bits": f"{mine[0]['conv_bits']} / {mine[0]['linear_bits']}"}
        row |= {"lr": f"{mine[0]['lr']:g}", "rise of the loss x 1000": column(mine, "rise", 1000)}
        row |= {f"{when} %": column([record["held out"] for record in mine], when) for when in ("pruned", "stored")}
        rows.append(row | {"runs": str(len(mine))})
    return write_table(rows, "markdown")


def page(files: list[dict], grid: list[dict]) -> str:
    """The page: the command, what the columns mean, and the tables."""
    text = (
        "# Deep Compression\n\n`python benchmarks/deep_compression.py RUN ...` wrote this page, from runs that ended with\n"
        "`--form deep_compression`. Dense, pruned and stored are accuracies on the test images: of the network that the run\n"
        "began with, after pruning and training, and of what is read from the file. Times smaller is the whole file, header\n"
        "too, against all parameters as float32; without Huffman the same with numbers of fixed length. Means over runs, with\n"
        f"the standard deviation. Rows of the paper are marked as published.\n\n{sizes(files)}\n\n"
        f"## Where the bits are\n\n{parts(files)}\n\n"
        "## The layers\n\nZeros between are stored entries that fill a gap, of all entries. Bits are those of values, indices,\n"
        f"code tables and codebook.\n\n{layers(files)}\n"
    )
    if not grid:
        return text
    return (
        f"{text}\n## At which learning rate the values are trained\n\nMeasured on the held-out images. Bits are those of\n"
        "convolutions and of linear layers; the rise of the loss is by sharing values that are trained at this rate, of which\n"
        f"0 trains nothing.\n\n{rates(grid)}\n"
    )


def main(argv: list[str]) -> None:
    """Measure what is not yet in --records, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run with this form")
    parser.add_argument("--lrs", type=float, nargs="+", default=[], help="learning rates of the values to try (default none)")
    parser.add_argument("--bits", type=int, nargs=2, metavar=("CONV", "LINEAR"), help="of these trials (default: the run's own)")
    parser.add_argument("--records", type=Path, default=Path(f"result/{FORM}.jsonl"))
    parser.add_argument("--table", type=Path, default=Path(f"benchmarks/{FORM}.md"))
    options = parser.parse_args(argv)
    forms = {folder: ended(folder).summary["form"]["name"] for folder in options.runs}  # what is refused is so at once
    if len({folder.resolve().name for folder in forms}) < len(forms):
        raise Refused("two of the folders have one name, by which the records know them")
    records = records_in(options.records)
    for folder, form in forms.items():
        place = {"run": folder.resolve().name, "form": form}
        if not found(records, place):
            keep(records, place | measure(folder), options.records)
        bits = bits_of(form) | (dict(zip(("conv_bits", "linear_bits"), options.bits, strict=True)) if options.bits else {})
        for lr in options.lrs:
            place = {"run": folder.resolve().name, **bits, "lr": lr}
            if not found(records, place):
                form = f"{FORM}({', '.join(f'{name}={value}' for name, value in {**bits, 'lr': lr}.items())})"
                keep(records, place | tried(folder, form), options.records)
    files, grid = ([record for record in records if (name in record)] for name in ("form", "lr"))
    options.table.write_text(page(files, grid), encoding="utf-8")
    print(sizes(files))


if __name__ == "__main__":
    with guard("deep_compression.py"):
        main(sys.argv[1:])
