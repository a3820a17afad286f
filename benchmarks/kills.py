"""This benchmark kills runs at random moments, resumes them, and compares their ends.

`python benchmarks/kills.py 40` kills 40, in turns of all kinds; names of kinds behind the number choose among them.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

MODELING = Path(__file__).resolve().parent.parent / "modeling.py"
COMMON = "--dataset digits --layers 20 --epochs 4 --batch_size 320 --device cpu --threads 1 --deterministic --quiet"
# what a clock wrote, and sizes of files: words that were read from one are not shared in it, and take more bytes
NOT_ALIKE = ("seconds", "images_per_second", "speed", "bytes", "dense_bytes", "header")
TIMES_AND_SIZES = ("result seconds", "result latency", "result file", "result form:", "result form parts")
STRUCTURED = "--prune_type structured --prune_rate 0.6"
ENDING = "--compact --recalibrate 4 --finetune_epochs 2"
# in each phase, procedure and kind of gate, and with what follows a run
KINDS = {
    "dense": "",
    "structured": f"{STRUCTURED} --reg reg_cov",
    "gradient": "--prune_type structured --prune_imp grad",
    "unstructured": "--prune_type unstructured --prune_rate 0.9 --prune_freq 1it",
    "rounds": f"{STRUCTURED} --rounds 3 {ENDING}",
    "after": f"{STRUCTURED} --prune_phase after --prune_until 0.5 --form deep_compression {ENDING}",
    "soft": f"{STRUCTURED} --prune_gate soft {ENDING}",
    "L0": "--prune_type structured --prune_gate hard_concrete(droprate=0.9) --compact",
    "variational": "--prune_type unstructured --prune_gate variational(begin=0.0,full=2.0)",
    "supermask": "--prune_type unstructured --prune_gate supermask",
    "sss": "--reg sss(of='filter') --odecay 20 --compact",
    "group lasso": f"--reg group_lasso(of='filter') --odecay 2 {ENDING}",
    "slimming": "--recipe slimming --layers 20 --epochs 4 --prune_rate 0.4",
    "multilayer": "--procedure multilayer(rounds=2)",
    "tickets": "--prune_type unstructured --procedure rounds(n=2,to='3it')",
    "copies": "--procedure connectivity(split='3it',points=3)",
    "layerwise": f"{STRUCTURED} --prune_phase after --prune_until 0.5 --procedure layerwise(epochs=0) --reconstruct thinet",
}


def start(flags: str, folder: Path) -> subprocess.Popen:
    """Start modeling.py with these flags in a folder."""
    command = [sys.executable, str(MODELING), *flags.split()]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> list[str]:
    """Wait for a run to end well; returns its lines of stdout without those that tell times and sizes of files."""
    out, err = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"a run failed: {err}")
    return [line for line in out.splitlines() if not line.startswith(TIMES_AND_SIZES)]


def flat(value, path: str = "") -> dict:
    """The leaves of nested dicts and lists by their paths, without what a clock wrote."""
    if isinstance(value, dict):
        items = [(key, part) for key, part in value.items() if key not in NOT_ALIKE]
    elif isinstance(value, (list, tuple)):
        items = list(enumerate(value))
    else:
        return {path: value}
    return {name: leaf for key, part in items for name, leaf in flat(part, f"{path}/{key}").items()}


def begun(process: subprocess.Popen, folder: Path) -> float:
    """Wait until a run has written its config.json; returns the time."""
    while process.poll() is None and not (folder / "config.json").exists():
        time.sleep(0.005)
    return time.monotonic()


def ending(folder: Path) -> dict:
    """What a run leaves in its folder: checkpoint (weights, masks, momentum, random state), metrics and summary, flat."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    return flat([torch.load(folder / "checkpoint.pt", weights_only=True), metrics, summary])


def same(first: dict, second: dict) -> bool:
    """Whether two endings are equal, their tensors bit for bit."""
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        for name, value in first.items()
    )


def main(kills: int, kinds: list[str]) -> None:
    """Kill and resume so many runs of some kinds; exits with 1 if one of them ends otherwise than the run that was not killed."""
    chance, whole, length, killed, tried, identical = random.Random(0), {}, {}, 0, 0, 0
    with tempfile.TemporaryDirectory() as name:
        parent = Path(name)
        for kind in kinds:
            (place := parent / kind).mkdir()  # all runs are named alike, since what they say names their files
            process = start(f"{COMMON} {KINDS[kind]} --out_dir run", place)
            first = begun(process, place / "run")
            whole[kind] = (finish(process), ending(place / "run"))
            length[kind] = time.monotonic() - first
        while killed < kills:
            kind, place, tried = kinds[killed % len(kinds)], parent / str(tried), tried + 1
            place.mkdir()
            process = start(f"{COMMON} {KINDS[kind]} --out_dir run", place)
            begun(process, place / "run")
            moment = chance.uniform(0, length[kind])
            time.sleep(moment)
            if process.poll() is not None:  # it ended by itself before the kill: it is not counted
                finish(process)
                continue
            process.kill()
            process.communicate()
            killed += 1
            metrics = place / "run" / "metrics.jsonl"
            done = metrics.read_text().count("\n") if metrics.exists() else 0
            out = finish(start("--resume run --quiet", place))
            equal = out == whole[kind][0] and same(ending(place / "run"), whole[kind][1])
            identical += equal
            words = "identical" if equal else "DIFFERENT"
            print(
                f"{killed:2} {kind:12} killed {moment:.2f} of {length[kind]:.2f} s in, after {done} epochs: {words}", flush=True
            )
    print(f"{identical} of {kills} identical")
    raise SystemExit(identical != kills)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20, sys.argv[2:] or list(KINDS))
