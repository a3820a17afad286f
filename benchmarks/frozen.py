"""This benchmark freezes what the program does, so that a redesign can prove that it changed nothing.

`python benchmarks/frozen.py record before.json` runs a fixed list of tiny commands, each in a process of its own, and
writes what came of them: lines of stdout (without times and machine-dependent latencies), and the SHA-256 of all tensors
of the last checkpoint and of model.pt. `python benchmarks/frozen.py compare before.json` runs the same commands again,
names each difference and exits with 1 if there is one. Both belong to one machine and one version of torch.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from settings.errors import guard  # noqa: E402

FIXED = ["--deterministic", "--threads", "1", "--device", "cpu"]
DIGITS = ["--dataset", "digits", "--layers", "20", "--epochs", "2"]
HALF = ["--prune_type", "structured", "--prune_rate", "0.5"]
RUNS = {
    "quick, 4 epochs": ["--dataset", "digits", "--layers", "20", "--epochs", "4", "--prune_type", "structured", "--prune_rate",
                        "0.6", "--reg", "reg_cov", "--odecay", "0.7"],
    "dense": DIGITS,
    "dense, float32, pad": [*DIGITS, "--amp", "off", "--shortcut", "pad", "--lr_schedule", "cosine", "--warmup_epochs", "1"],
    "ksc2020": [*DIGITS, "--recipe", "ksc2020"],
    "paper": [*DIGITS, "--recipe", "paper"],
    "best": [*DIGITS, "--recipe", "best"],
    "unstructured syn at init": [*DIGITS, "--prune_type", "unstructured", "--prune_rate", "0.9", "--prune_imp", "syn",
                                 "--prune_phase", "init"],
    "grouped, budget, compact, fine-tuned": [*DIGITS, "--prune_type", "structured", "--target_macs", "0.4", "--residual",
                                             "grouped", "--compact", "--finetune_epochs", "1", "--recalibrate", "2"],
    "weight gate, compact": [*DIGITS, *HALF, "--prune_gate", "weight", "--compact", "--prune_until", "0.5"],
    "rounds": [*DIGITS, *HALF, "--rounds", "2", "--prune_imp", "FPGM"],
    "LcP": [*DIGITS, *HALF, "--prune_imp", "LcP(evaluations=4)", "--prune_phase", "init", "--score_batches", "1"],
    "maps": [*DIGITS, *HALF, "--prune_imp", "Taylor2019", "--prune_freq", "4it", "--score_batches", "1"],
    "counts": [*DIGITS, "--prune_type", "structured", "--prune_imp", "PFA(counts='KL')", "--prune_phase", "init"],
    "preset": ["--dataset", "digits", "--epochs", "1", "--preset", "ResNet-56-A", "--compact"],
    "vgg, ortho, local": ["--dataset", "digits", "--epochs", "1", "--arch", "vgg16", *HALF, "--reg", "reg_ortho",
                          "--prune_scope", "local(floor=2)", "--prune_schedule", "cubic", "--round_to", "8"],
    "bottleneck": ["--dataset", "digits", "--epochs", "1", "--layers", "50", "--batch_size", "64", *HALF, "--reg", "reg_cov",
                   "--compact"],
}  # fmt: skip
# commands that go on from another run, and {} stands for that run's folder
LATER = {
    "init + after": ("dense", ["--init", "{}", "--dataset", "digits", "--epochs", "1", *HALF, "--prune_phase", "after",
                               "--lr", "0.01", "--compact"]),
    "resumed for longer": ("quick, 4 epochs", ["--resume", "{}", "--epochs", "5"]),
    "resumed to compact": ("rounds", ["--resume", "{}", "--compact"]),
    "from scratch": ("preset", ["--scratch", "{}/model.pt", "--dataset", "digits", "--epochs", "1"]),
    "evaluated": ("preset", ["--evaluate", "{}/model.pt"]),
}  # fmt: skip
TIMES = re.compile(r"^result (seconds|latency|file|export)|^epoch 0 took")


def readme_commands() -> list[list[str]]:
    """The commands of training in the READMEs that need no earlier run, as lists of flags."""
    pages = [ROOT / "README.md", *sorted(ROOT.glob("*/README.md"))]
    blocks = re.findall(r"```sh\n(.*?)```", "\n".join(page.read_text(encoding="utf-8") for page in pages), re.DOTALL)
    lines = {line for block in blocks for line in block.splitlines() if line.startswith("python modeling.py")}
    return [shlex.split(line.split(">")[0])[2:] for line in sorted(lines) if not re.search("--(resume|evaluate|pred|init)", line)]


def digest(tensors: dict) -> str:
    """The SHA-256 of all tensors in nested dicts and lists, and of the path to each, its type and its shape."""
    total = hashlib.sha256()

    def add(value, path: str) -> None:
        if isinstance(value, torch.Tensor):
            total.update(f"{path} {value.dtype} {tuple(value.shape)}".encode())
            total.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
        elif isinstance(value, dict):
            for name in sorted(value, key=str):
                add(value[name], f"{path}/{name}")
        elif isinstance(value, list | tuple):
            for number, item in enumerate(value):
                add(item, f"{path}/{number}")

    add(tensors, "")
    return total.hexdigest()


def run(flags: list[str], folder: Path | None) -> dict:
    """Run a command; returns its exit status, its lines, and the digests of the files in its `folder`."""
    command = [sys.executable, str(ROOT / "modeling.py"), *flags]
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    lines = [line for line in done.stdout.splitlines() if not TIMES.match(line)]
    outcome = {"status": done.returncode, "stdout": lines}
    if done.returncode:
        outcome["stderr"] = done.stderr.splitlines()[-1:]
    if folder is not None and (folder / "checkpoint.pt").exists():
        state = torch.load(folder / "checkpoint.pt", weights_only=True)
        outcome["checkpoint"] = digest({name: state[name] for name in ("model", "optimizer", "random")})
        if (folder / "model.pt").exists():
            state = torch.load(folder / "model.pt", weights_only=True)
            outcome["model.pt"] = digest({name: state[name] for name in ("tensors", "shapes", "mean", "std")})
    return outcome


def everything(jobs: int, wanted: str) -> dict:
    """The outcomes of the commands whose name matches `wanted`, by name; `jobs` commands run at a time."""
    with tempfile.TemporaryDirectory() as parent, ThreadPoolExecutor(jobs) as pool:
        folders = {name: Path(parent) / re.sub(r"\W+", "_", name) for name in (*RUNS, *LATER)}
        needed = {LATER[name][0] for name in LATER if re.search(wanted, name)}
        first = {
            name: pool.submit(run, [*flags, *FIXED, "--out_dir", str(folders[name])], folders[name])
            for name, flags in RUNS.items()
            if re.search(wanted, name) or name in needed
        }
        dry = {}
        for flags in readme_commands():
            if re.search(wanted, name := "dry run: " + shlex.join(flags)):
                small = ["--dataset", "digits", "--batch_size", "8", "--dry_run", *FIXED]
                dry[name] = pool.submit(run, [*flags, *small], None)
        outcomes = {name: future.result() for name, future in first.items()}
        later = {}
        for name, (source, flags) in LATER.items():
            if not re.search(wanted, name):
                continue
            flags = [word.replace("{}", str(folders[source])) for word in flags]
            goes_on, uses = "--resume" in flags, "--evaluate" in flags
            fixed = ["--threads", "1"] if goes_on else FIXED[1:] if uses else [*FIXED, "--out_dir", str(folders[name])]
            later[name] = pool.submit(run, [*flags, *fixed], folders[source] if goes_on else None if uses else folders[name])
        return outcomes | {name: future.result() for name, future in {**later, **dry}.items()}


def main(argv: list[str]) -> int:
    """Record outcomes, or compare them with recorded ones; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", default="", help="a regular expression: commands whose name it matches")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="commands at a time")
    options = parser.parse_args(argv)
    outcomes = everything(options.jobs, options.only)
    if options.what == "record":
        options.file.write_text(json.dumps(outcomes, indent=1) + "\n", encoding="utf-8")
        failed = sum(bool(outcome["status"]) for outcome in outcomes.values())
        print(f"{len(outcomes)} commands recorded, {failed} of them failed")
        return 0
    before, different = json.loads(options.file.read_text(encoding="utf-8")), 0
    for name, now in outcomes.items():
        then = before.get(name)
        if then is None:
            print(f"new: {name}: status {now['status']} {''.join(now.get('stderr', ()))}")
        elif then != now:
            different += 1
            parts = [part for part in {**then, **now} if then.get(part) != now.get(part)]
            print(f"DIFFERENT: {name}: {', '.join(parts)} {''.join(now.get('stderr', ()))}")
            for old, new in zip(then["stdout"], now["stdout"], strict=False):
                if old != new:
                    print(f"  was {old}\n  is  {new}")
                    break
    print(f"{len(outcomes)} commands, {different} different")
    return int(different > 0)


if __name__ == "__main__":
    with guard("frozen.py"):
        sys.exit(main(sys.argv[1:]))
