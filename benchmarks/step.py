"""This benchmark measures what a training step costs: `python benchmarks/step.py > benchmarks/step.md`.

The plain network, ours with moving masks and reg_cov, and the published engine (benchmarks/published.py) take turns; the
table has medians, with the interquartile range. Dense and ours are the program's own code, in one process, on the digits
inside scikit-learn, so that nothing is downloaded; benchmarks/step_variants.py holds what takes turns.
"""

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import models
from benchmarks.step_variants import Apart, Own, taught, wait
from pruning import accounting
from settings.errors import guard

OURS = ["--prune_type", "structured", "--prune_rate", "0.6", "--reg", "reg_cov", "--odecay", "0.7"]
CIFAR = 45_000  # training images, a tenth held out: masks move once an epoch


def milliseconds(work, device: str) -> float:
    """How long `work` takes on the device."""
    wait(device)
    began = time.perf_counter()
    work()
    wait(device)
    return 1e3 * (time.perf_counter() - began)


def spread(times: list[float]) -> float:
    """The interquartile range of these times; 0 of a single one."""
    if len(times) < 2:
        return 0.0
    low, _, high = statistics.quantiles(times, n=4)
    return high - low


def parts(own: Own, device: str, rounds: int) -> dict:
    """The median milliseconds of each part of a step; of the masks the part of a step, as they move once an epoch of CIFAR-10."""
    times = {}
    for _ in range(rounds):
        wait(device)
        last = [time.perf_counter()]

        def mark(name: str, last=last) -> None:
            wait(device)
            now = time.perf_counter()
            times.setdefault(name, []).append(1e3 * (now - last[0]))
            last[0] = now

        own.step(mark)
    times["of it: regulariser, with its gradient"] = [milliseconds(own.regulariser, device) for _ in range(rounds)]
    steps = CIFAR // own.run.task.batch
    times[f"masks, once in {steps} steps"] = [milliseconds(own.masks, device) / steps for _ in range(rounds)]
    return {name: statistics.median(taken) for name, taken in times.items()}


def ceiling(device: str, dtype) -> tuple[float, float]:
    """The best that the device reaches: multiply-accumulates a second in a matrix product, and bytes a second in a copy."""
    n, bytes_ = (8192, 2**30) if device == "cuda" else (2048, 2**28)
    a, b = torch.randn(n, n, device=device, dtype=dtype), torch.randn(n, n, device=device, dtype=dtype)
    x = torch.empty(bytes_, dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    product = min(milliseconds(lambda: a @ b, device) for _ in range(10))
    copy = min(milliseconds(lambda: y.copy_(x), device) for _ in range(10))
    return 1e3 * n**3 / product, 2e3 * bytes_ / copy


def traffic(network, batch: int, size: int) -> float:
    """The bytes of activations that a step must move, if each has two bytes and every operation is a kernel of its own.

    There are seven passes over a unit's output. It is written by the convolution, read and written by batch norm, and read by
    the next convolution; in the backward pass the gradient is read and written, and the output is read once more.
    """
    pixels = accounting.positions(network, size)
    return 7 * 2 * batch * sum(unit.filters * pixels[name] for name, unit in network.all_units.items())


def kernels(own: Own) -> int:
    """The number of CUDA kernels that a step launches."""
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        own.step()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in record.events())


def variants(arch: str, batch: int, options) -> dict:
    """What takes turns, by the name that the table has for it."""
    plain = ["--compile" if options.compile else "--no_compile"]
    chosen = {"dense": Own(arch, batch, options.device, plain), "ours": Own(arch, batch, options.device, [*OURS, *plain])}
    if options.compile:
        chosen["ours, not compiled"] = Own(arch, batch, options.device, [*OURS, "--no_compile"])
    if options.teacher:
        chosen |= taught(arch, batch, options.device, plain)
    if not options.skip_published:
        images = chosen["dense"].run.task.train
        chosen["published"] = Apart(arch, batch, images, options.device, options.workers)
    return chosen


def gigabytes(arch: str, batch: int, published: bool) -> float:
    """The GB that all variants' activations need at the most: three a unit, of four bytes if the published engine runs."""
    network = models.build(arch)
    pixels = accounting.positions(network, 32)
    values = batch * sum(unit.filters * pixels[name] for name, unit in network.all_units.items())
    return values * 3 * (4 if published else 2) / 1e9


def measure(arch: str, batch: int, options) -> dict:
    """Let the variants of one network and batch take turns; returns the row that the JSON file and `lines` have."""
    torch.manual_seed(0)
    torch.compiler.reset()  # torch compiles a function for a few networks only, and silently runs it uncompiled for the next
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    taking_turns = variants(arch, batch, options)
    times = {name: [] for name in taking_turns}
    for turn in range(options.warmup + options.steps):
        for name, variant in taking_turns.items():
            took = milliseconds(variant.step, options.device)
            if turn >= options.warmup:
                times[name].append(took)
        time.sleep(0.2 * took / 1e3)  # its workers, if it has any, now fetch the next batch: not while another variant is timed
    peak = torch.cuda.max_memory_allocated() if options.device == "cuda" else 0
    if "published" in taking_turns:
        taking_turns.pop("published").close()
    own = taking_turns["ours"]
    macs, size = accounting.dense(taking_turns["dense"].model, 32).macs, own.run.task.inputs[1]
    ours = statistics.median(times["ours"])
    dtype = torch.bfloat16 if own.run.engine.amp == "bfloat16" else torch.float32
    arithmetic, memory = ceiling(options.device, dtype)
    row = {
        "network": arch,
        "batch": batch,
        "ms": {name: [statistics.median(taken), spread(taken)] for name, taken in times.items()},
        "parts": parts(own, options.device, max(options.steps // 2, 1)),
        "arithmetic": 3e3 * macs * batch / ours / arithmetic,
        "memory": 1e3 * traffic(taking_turns["dense"].model, batch, size) / ours / memory,
        "ceilings": [arithmetic, memory],
        "precision": str(dtype).removeprefix("torch."),
    }
    if options.device == "cuda":
        row |= {"kernels": kernels(own), "peak_gb": peak / 1e9}
    return row


def lines(row: dict) -> list[str]:
    """The lines of Markdown that tell the row of one network and batch."""
    dense, ours = row["ms"]["dense"][0], row["ms"]["ours"][0]
    out = [f"\n### {row['network']}, batch {row['batch']}, {row['precision']}\n"]
    out += ["| step | ms (interquartile range) | images/s | of dense | published, times as long |", "|---|---|---|---|---|"]
    published = row["ms"].get("published", [None])[0]
    for name, (taken, quartiles) in row["ms"].items():
        gain = f"{published / taken:.2f}" if published else "-"
        out.append(
            f"| {name} | {taken:.1f} ({quartiles:.1f}) | {1e3 * row['batch'] / taken:.0f} | {taken / dense:.3f} | {gain} |"
        )
    parts = ", ".join(f"{name} {taken:.2f} ms ({100 * taken / ours:.1f} %)" for name, taken in row["parts"].items())
    out += ["", f"Where ours goes, measured apart: {parts}."]
    arithmetic, memory = row["ceilings"]
    out.append(
        f"Ceilings: {100 * row['arithmetic']:.0f} % of {arithmetic / 1e9:.0f} GMAC/s, the best matrix product here; "
        f"{100 * row['memory']:.0f} % of {memory / 1e9:.1f} GB/s, the best copy."
    )
    if "kernels" in row:
        out.append(f"{row['kernels']} kernels launched a step; at most {row['peak_gb']:.2f} GB held by all of ours together.")
    return out


def main(argv: list[str]) -> None:
    """Measure every network at every batch size, and print what came of each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", default=["resnet56", "resnet50", "vgg16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[128, 1024])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=10, help="timed turns")
    parser.add_argument("--warmup", type=int, default=2)
    by_default, switch = torch.cuda.is_available(), argparse.BooleanOptionalAction
    parser.add_argument("--compile", action=switch, default=by_default, help="dense and ours compiled")
    parser.add_argument("--skip_published", action="store_true")
    parser.add_argument("--teacher", action="store_true", help="a row for each distillation loss, and the teacher's pass")
    parser.add_argument("--workers", type=int, default=2, help="of the published engine's loader")
    parser.add_argument("--memory", type=float, default=20, help="GB; what needs more is passed over (default 20)")
    parser.add_argument("--json", type=Path, help="file that the rows are added to")
    options = parser.parse_args(argv)
    processor = f"{platform.machine()} ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads"
    name = torch.cuda.get_device_name() if options.device == "cuda" else processor
    print(f"torch {torch.__version__}, {name}", flush=True)
    for arch in options.networks:
        for batch in options.batches:
            needed = gigabytes(arch, batch, not options.skip_published)
            if needed > options.memory:
                print(f"\n### {arch}, batch {batch}\n\nnot measured: about {needed:.0f} GB of activations", flush=True)
                continue
            row = measure(arch, batch, options)
            print("\n".join(lines(row)), flush=True)
            if options.json:
                with options.json.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            gc.collect()


if __name__ == "__main__":
    with guard("step.py"):
        main(sys.argv[1:])
