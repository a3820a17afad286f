"""This benchmark damages every kind of file that the program reads: `python benchmarks/fuzz_files.py`.

It makes tiny runs, changes one of their files in one place, chosen by --seed, and gives it to the command that reads
it. Each change must be refused in one line, or mean the same as before. The command ends with status 1 if one leads to a
traceback, takes more than 20 s, or changes what the file means in silence. `--show` tells the changes that were taken as
another file, such as another name for a name.
"""

import argparse
import contextlib
import hashlib
import io
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import modeling
import report
import sensitivity
from benchmarks.fuzz_mutations import mutate
from deploy import latency, use
from runs.console import epoch_lines, say_all
from settings.arguments import parse
from settings.errors import guard

SECONDS = 20
OUTCOMES = ("refused", "the same", "another file", "traceback", "hang", "silent change")
TINY = ["--dataset", "folder", "--data_dir", "pictures", "--image_size", "16", "--layers", "20", "--batch_size", "18"]
TINY += ["--device", "cpu", "--threads", "1", "--quiet"]
PRUNED = ["--prune_type", "structured", "--prune_rate", "0.6"]


class Hang(BaseException):
    """The time for one file is over."""


@dataclass
class Reader:
    """A command that reads `file`, which lies in `folder`; `kind` is how the file is written."""

    file: str
    folder: str
    kind: str
    command: list[str]
    program: Callable[[list[str]], object]
    free: str = "-"  # parts that need not be there begin with this


def modeling_main(argv: list[str]) -> None:
    settings = parse(argv)
    (use.main if settings.use.evaluate else modeling.main)(settings)


def report_main(argv: list[str]) -> None:
    if status := report.main(argv):
        raise SystemExit(status)


RESUME = ["--resume", "trial", "--quiet", "--threads", "1"]
INIT = [*TINY, "--prune_type", "structured", "--prune_phase", "init", "--init", "dense", "--out_dir", "new", "--prune_scope"]
WEIGHTS = ["--prune_type", "unstructured", "--epochs", "1"]
CONTROL = [*TINY, *WEIGHTS, "--procedure", "control(of='trial')", "--out_dir", "new"]
READERS = [
    Reader("checkpoint.pt", "pruned", "torch", [*RESUME, "--epochs", "2"], modeling_main),
    Reader("checkpoint.pt", "smaller", "torch", [*RESUME, "--finetune_epochs", "2"], modeling_main),
    Reader("checkpoint.pt", "dense", "torch", [*TINY, "--init", "trial/checkpoint.pt", "--out_dir", "new"], modeling_main),
    Reader("checkpoint.pt", "rounds", "torch", [*RESUME, "--recalibrate", "1"], modeling_main),
    Reader("checkpoint.pt", "rounds", "torch", CONTROL, modeling_main),
    Reader("model.pt", "smaller", "torch", ["--evaluate", "trial/model.pt", "--quiet", "--threads", "1"], modeling_main),
    Reader("model.pt", "smaller", "torch", ["--scratch", "trial/model.pt", "--quiet", "--out_dir", "new"], modeling_main),
    Reader("config.json", "pruned", "json", [*RESUME, "--epochs", "2"], modeling_main),
    Reader("config.json", "pruned", "json", ["trial", "--no_plots"], report_main),
    Reader("config.json", "smaller", "json", ["trial", "--no_plots", "--layers"], report_main),
    Reader("summary.json", "smaller", "json", RESUME, modeling_main),
    Reader("summary.json", "smaller", "json", ["trial", "--no_plots"], report_main),
    Reader("metrics.jsonl", "smaller", "jsonl", ["trial", "--no_plots"], report_main),
    Reader("metrics.jsonl", "pruned", "jsonl", ["trial", "--no_plots", "--layers"], report_main),
    Reader("scan.json", "files", "json", [*INIT, "sensitivity(file='trial/scan.json')"], modeling_main),
    Reader("preset.json", "files", "json", [*INIT, "preset(name='trial/preset.json')"], modeling_main, "kept."),
]
KINDS = tuple(dict.fromkeys(reader.file for reader in READERS))


TRAINS = modeling.carry_out


def make_runs() -> None:
    """Make the runs and the files, in the current folder, on 60 pictures of coloured noise."""
    noise = np.random.RandomState(0)
    for part, count in (("train", 20), ("test", 8)):
        for label, name in enumerate(("blue", "green", "red")):
            Path("pictures", part, name).mkdir(parents=True)
            for number in range(count):
                pixels = noise.randint(0, 200, (16, 16, 3))
                pixels[..., 2 - label] += 55
                Image.fromarray(pixels.astype(np.uint8)).save(Path("pictures", part, name, f"{number}.png"))
    for folder, flags in (("dense", []), ("pruned", PRUNED), ("smaller", [*PRUNED, "--compact", "--finetune_epochs", "1"])):
        modeling_main([*TINY, "--epochs", "1", "--out_dir", folder, *flags])
    modeling_main([*TINY, *WEIGHTS, "--procedure", "rounds(n=1, fraction=0.3)", "--out_dir", "rounds"])
    Path("files").mkdir()
    sensitivity.main(["dense", "--rates", "0.25", "0.5", "--out", "files/scan.json", "--device", "cpu"])
    Path("files/preset.json").write_text('{"rate": 0.5, "arch": "resnet20", "kept": {"stem": 9, "stage1.0.conv1": 3}}')


def told(value, digest) -> None:
    """Add all that a value holds to a digest, bit for bit."""
    if isinstance(value, torch.Tensor):
        digest.update(str((value.dtype, value.shape)).encode() + value.detach().contiguous().numpy().tobytes())
    elif isinstance(value, dict):
        for name in sorted(value, key=str):
            digest.update(repr(name).encode())
            told(value[name], digest)
    elif isinstance(value, list | tuple):
        for item in value:
            told(item, digest)
    else:
        digest.update(repr(value).encode())


def instead_of_training(run, folder, rows: list[dict]) -> None:
    """Say what a run goes on from: its lines, its settings, and a digest of its state with the masks of the first step."""
    digest = hashlib.sha256()
    run.move_masks(run.plan.first_epoch(run.stage), 0)
    told([run.state(), run.settings.flat], digest)
    say_all(*(line for row in rows for line in epoch_lines(row, run.task)), digest.hexdigest())


def outcome(reader: Reader) -> tuple[str, str]:
    """Run the command; return "accepted" and its lines, or how else it ended and the lines on stderr."""
    out, err = io.StringIO(), io.StringIO()
    shutil.rmtree("new", ignore_errors=True)

    def over(*_):
        raise Hang

    signal.signal(signal.SIGALRM, over)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), guard("modeling.py"):
            reader.program(reader.command)
    except SystemExit as ended:
        lines = err.getvalue().splitlines()
        one_line = lines and all(line.isprintable() for line in lines) and sum("error: " in line for line in lines) == 1
        return ("refused" if ended.code and one_line else "traceback"), err.getvalue()
    except Hang:
        return "hang", ""
    except BaseException as error:
        return "traceback", f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    # what is told of the file in a line, as that a run counts as unfinished, is no silent change
    return ("refused", err.getvalue()) if f"{reader.file}'" in err.getvalue() else ("accepted", out.getvalue())


def trial(reader: Reader, content: bytes | None) -> tuple[str, str]:
    """Give the command a copy of the run, with this content of the file; None leaves the file as it is."""
    shutil.rmtree("trial", ignore_errors=True)
    shutil.copytree(reader.folder, "trial", ignore=shutil.ignore_patterns("previous.pt", "masked.pt"))
    if content is not None:
        Path("trial", reader.file).write_bytes(content)
    return outcome(reader)


def fuzz(kind: str, mutations: int, seed: int, tell: Callable[[str], object]) -> Counter:
    """Change the files of a kind so many times; returns how many changes had each outcome, and tells those that are wrong."""
    chance, counts = random.Random(f"{kind} {seed}"), Counter()
    readers = [reader for reader in READERS if reader.file == kind]
    meant = {}
    for number in range(mutations):
        reader = readers[number % len(readers)]
        if id(reader) not in meant:
            how, said = trial(reader, None)
            if how != "accepted":
                raise SystemExit(f"{reader.command} fails on the file as it was: {said}")
            # a damaged summary may be made anew
            meant[id(reader)] = {said, trial(reader, b"")[1]} if kind == "summary.json" else {said}
        mutation = mutate(Path(reader.folder, reader.file).read_bytes(), reader.kind, chance)
        how, said = trial(reader, mutation.content)
        if how == "accepted":
            wanted = not mutation.foreign or (mutation.words.startswith(reader.free) and mutation.words.endswith("dropped"))
            how = "the same" if said in meant[id(reader)] else "another file" if wanted else "silent change"
        counts[how] += 1
        if how in ("traceback", "hang", "silent change", "another file"):
            tell(f"{how}: {kind} for {reader.command[0]} {reader.folder}: {mutation.words}: {said[-300:]!r}")
    return counts


@contextlib.contextmanager
def workplace():
    """A new folder with the runs as the current one; trainings end before their first step, and timings take one round."""
    own = (modeling.carry_out, latency.MOST, latency.WARM_UP, Path.cwd())
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            latency.MOST = latency.WARM_UP = 1
            modeling.carry_out = TRAINS  # also inside of another workplace
            with contextlib.redirect_stdout(io.StringIO()):
                make_runs()
            modeling.carry_out = instead_of_training
            yield
        finally:
            modeling.carry_out, latency.MOST, latency.WARM_UP, _ = own
            os.chdir(own[3])


def main(argv: list[str]) -> int:
    """Damage the files that the command line names; returns 1 if something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=400, help="of each kind of file (default 400)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of files (default all)")
    parser.add_argument("--seed", type=int, default=0, help="of the changes (default 0)")
    parser.add_argument("--show", action="store_true", help="tell the changes that were taken as another file, too")
    options = parser.parse_args(argv)
    wrong = 0
    print(f"| file | {' | '.join(OUTCOMES)} | seconds |\n|---|{'---|' * (len(OUTCOMES) + 1)}")
    with workplace():
        for kind in options.kinds:

            def tell(line: str) -> None:
                if options.show or not line.startswith("another file"):
                    print(line, file=sys.stderr)

            began = time.monotonic()
            counts = fuzz(kind, options.mutations, options.seed, tell)
            wrong += sum(counts[name] for name in OUTCOMES[3:])
            print(
                f"| {kind} | {' | '.join(str(counts[name]) for name in OUTCOMES)} | {time.monotonic() - began:.0f} |", flush=True
            )
    print(f"\nmost memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
