"""This benchmark tells what each step makes of one network: `python benchmarks/compression.py RUN`.

RUN is the folder of a dense run of modeling.py. Its network is pruned by the L1 norm to --macs and trained on; then its layers
are factorised by --factorise, and it is trained on again. Of the dense, the pruned and the factorised network the .onnx file
in float32, the one in 8 bits and the file of Deep Compression are measured: bytes, accuracy on the test images as read from
the file, and the latency in onnxruntime, in which float32 and 8 bits take turns. Each run is a command of modeling.py with a
folder of its own in --out. A comparison that was stopped goes on: each result is a line of --records. The page is written to
--table. Latencies are worth something only on a machine that does nothing else.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.int8 import of_run  # noqa: E402
from benchmarks.records import comparison_parser, conditions, ended, found, keep, machine_flags, records_in, run_in  # noqa: E402
from runs.records import Run, read_run  # noqa: E402
from runs.speed_lines import too_wide  # noqa: E402
from runs.tables import write_table  # noqa: E402
from settings.arguments import parse  # noqa: E402
from settings.earlier import saved_settings  # noqa: E402
from settings.errors import Refused, guard  # noqa: E402
from settings.registry import FACTORISATIONS, FORMS  # noqa: E402

STEPS = ("dense", "pruned", "factorised")
FORM = {"int8": "8 bits", "deep_compression": "Deep Compression"}


def flags_of(options, step: str) -> list[str]:
    """The flags that begin the run of a step."""
    training = {"epochs": options.epochs, "lr": options.lr, "lr_schedule": "cosine", "weight_decay": options.weight_decay}
    training |= {"batch_size": saved_settings(Path(options.run))["batch_size"]}
    flags = [word for name, value in training.items() for word in (f"--{name}", str(value))]
    if step == "pruned":
        flags += ["--init", options.run, "--prune_type", "structured", "--prune_phase", "init"]
        return [*flags, "--target_macs", str(options.macs), "--compact"]
    return [*flags, "--init", str(options.out / "pruned" / "model.pt"), "--factorise", options.factorise]


def run_of(options, step: str) -> Run:
    """The run of a step, which is begun or goes on where it has not ended."""
    if step == "dense":
        return read_run(Path(options.run))
    return run_in(options.out / step, flags_of(options, step), machine_flags(options))


def measure(options, step: str, form: str) -> dict:
    """What a form makes of the network of a step, as plain values."""
    run = run_of(options, step)
    folder = Path(options.run) if step == "dense" else options.out / step
    result = {name: run.summary["left"][name] for name in ("parameters", "macs")}
    return result | of_run(folder, getattr(options, form), options.data_dir)


def table(records: list[dict]) -> str:
    """The table: for each step the float32 file, then its forms, beside the float32 file of the dense network."""
    rows, dense = [], found(records, {"step": "dense", "form": "int8"})
    for step in STEPS:
        both = found(records, {"step": step, "form": "int8"})
        rows.append({"network": step, "file": "float32", **_cells(both, "float32", dense)})
        rows.append({"network": step, "file": FORM["int8"], **_cells(both, "form", dense)})
        coded = found(records, {"step": step, "form": "deep_compression"})
        rows.append({"network": step, "file": FORM["deep_compression"], **_cells(coded, "form", dense)})
    return write_table(rows, "markdown")


def _cells(record: dict, file: str, dense: dict) -> dict[str, str]:
    """The cells of a row: of the network's "float32" file, or of that of its "form"; `dense` is what the first network gave."""
    size, accuracy = (record["float_bytes"], record["before"]) if file == "float32" else (record["bytes"], record["after"])
    cells = {"parameters": str(record["parameters"]), "MACs": str(record["macs"]), "bytes": str(size)}
    cells |= {
        "times smaller": f"{dense['float_bytes'] / size:.2f}",
        "bits a dense parameter": f"{8 * size / dense['parameters']:.2f}",
    }
    cells["test %"] = f"{accuracy:.2f}"
    timed = {
        row["batch"]: f"{row[file]['ms']:.2f}{' (TOO WIDE)' if too_wide(row, 'form', 'float32') else ''}"
        for row in record.get("speed", ())
    }
    return cells | {f"ms, batch {row['batch']}": timed.get(row["batch"], "-") for row in dense["speed"]}


def page(options, records: list[dict]) -> str:
    """The page: the command, what was measured, the table."""
    return (
        f"# What each step makes of one network\n\n`python benchmarks/compression.py {options.run}` wrote this page\n"
        f"({conditions(records[0]['asked'])}). Each step goes on with the network of the row before it, and forms are made of\n"
        "the network of their step. Accuracies are of what is read from the files, in float32 or in 8 bits; latencies are\n"
        f"medians in onnxruntime, of Deep Compression none, since its network is the one of float32.\n\n{table(records)}\n"
    )


def check(options) -> None:
    """Raise Refused for a RUN or options that cannot be used."""
    ended(Path(options.run))
    try:
        FACTORISATIONS.check(options.factorise)
        for form in FORM:
            FORMS.check(getattr(options, form))
    except ValueError as error:
        raise Refused(str(error)) from None
    parse([*flags_of(options, "pruned"), *machine_flags(options)])


def main(argv: list[str]) -> None:
    """Carry out the steps, measure what is not yet in --records, and write the page."""
    parser = comparison_parser(__doc__.split("\n")[0], "compression", seeds=False)
    parser.add_argument("--macs", type=float, default=0.5, help="fraction that pruning leaves (default 0.5)")
    parser.add_argument("--factorise", default="tucker(macs=0.7)", help="of what pruning leaves (default tucker(macs=0.7))")
    parser.add_argument("--epochs", type=int, default=5, help="behind each of both steps (default 5)")
    parser.add_argument("--lr", type=float, default=0.01, help="of these (default 0.01)")
    parser.add_argument("--int8", default="int8", help="the form in 8 bits, with its options")
    parser.add_argument("--deep_compression", default="deep_compression", help="that of Deep Compression, with its options")
    parser.add_argument("--out", type=Path, default=Path("result/compression"), help="the folder of the runs' folders")
    options = parser.parse_args(argv)
    check(options)
    names = ("run", "macs", "factorise", "epochs", "lr", "weight_decay", "int8", "deep_compression", "device", "threads")
    asked = {name: getattr(options, name) for name in names}
    records = records_in(options.records, asked)
    for step in STEPS:
        for form in FORM:
            place = {"step": step, "form": form}
            if not found(records, place):
                keep(records, {**place, **measure(options, step, form), "asked": asked}, options.records)
    options.table.write_text(page(options, records), encoding="utf-8")
    print(table(records))


if __name__ == "__main__":
    with guard("compression.py"):
        main(sys.argv[1:])
