"""This command scores a family of untrained networks: `python proxies.py --dataset digits --out_dir result/family`.

The scores are those of Abdelfattah et al., 2021 (arXiv 2101.08134), beside the numbers of parameters and MACs. How they rank
the networks is compared with the test accuracies of trained runs, which --runs names or --epochs trains. In the folder
--out_dir the command leaves a table, a figure and the scores, and goes on there when it is typed again. A word of --family
is an --arch in which braces list alternatives, as in resnet{20,32}(widen={0.5,1.0}). Flags of modeling.py such as --data_dir,
--seed and --device are passed on.
"""

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from runs.ranks import rank_correlations, vote
from runs.records import read_run
from runs.scatter import draw_scores
from runs.storage import append, as_json, replace
from runs.tables import write_table
from settings.arguments import Settings, method, parse
from settings.errors import Failed, Refused, guard, one_line
from settings.files import MOST_JSON, Damaged, Missing, parse_json, read_json, read_whole
from settings.registry import NETWORKS, PROXIES
from settings.schema import ANYTHING, COUNT, FINITE, TEXT, DictOf, Maybe, Record

FAMILY = [
    "resnet{20,32,44,56}(widen={0.25,0.5,0.75,1.0})",
    "vgg{16,19}(widen={0.125,0.25,0.5,1.0})",
    "lenet{5,300}",
]
VOTERS = ("synflow", "jacob_cov", "snip")
BASELINES = ("parameters", "macs")
# flags of modeling.py that say what this command says itself
OWN = {"--arch", "--layers", "--init", "--scratch", "--widths", "--resume", "--prune_type", "--preset", "--procedure"}
OWN |= {"--dry_run", "--evaluate", "--predict"}
ASKED = Record({"images": COUNT, "settings": DictOf(ANYTHING)})
SCORED = Record({"arch": TEXT, "parameters": COUNT, "macs": COUNT, "seconds": FINITE, "scores": DictOf(Maybe(FINITE))})


def members(words: list[str]) -> list[str]:
    """The networks of a family: each word with every combination of the alternatives in its braces, once each."""
    names = []
    for word in words:
        parts = re.split(r"\{([^{}]*)\}", word)
        texts = [""]
        for number, part in enumerate(parts):
            choices = [choice.strip() for choice in part.split(",")] if number % 2 else [part]
            texts = [text + choice for text in texts for choice in choices]
        names += texts
    return list({network_of(name): name for name in reversed(names)}.values())[::-1]


def network_of(arch: str) -> tuple:
    """What a network is told from others by: its name, and the options that are not at their defaults."""
    try:
        name, options = NETWORKS.check(arch)
    except ValueError as error:
        raise Refused(f"--family: {error}") from None
    known = NETWORKS.entry(name).options
    return name, tuple(sorted((option, value) for option, value in options.items() if value != known[option].default))


def read(argv: list[str]) -> tuple[argparse.Namespace, dict[str, Settings], list[str]]:
    """The command's own options, the settings of each network of the family, and the flags that are passed on."""
    parser = argparse.ArgumentParser(
        prog="proxies.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.error = refuse
    parser.add_argument("--family", nargs="+", default=FAMILY, metavar="ARCH", help=f"networks (default {' '.join(FAMILY)})")
    parser.add_argument("--out_dir", type=Path, required=True, help="folder for the scores, the table and the figure")
    parser.add_argument("--images", type=int, default=64, help="training images that the scores read (default 64)")
    parser.add_argument("--runs", type=Path, nargs="+", default=[], help="folders of trained runs of these networks")
    parser.add_argument("--epochs", type=int, help="train each network for so many epochs, by modeling.py (default: none)")
    options, rest = parser.parse_known_args(argv)
    if options.images < 2:
        refuse("--images is at least 2")
    if taken := OWN & {word.split("=")[0] for word in rest}:
        refuse(f"{min(taken)} has no effect here: --family says which networks, and none is pruned")
    for path in options.runs:
        if not path.is_dir():
            refuse(f"--runs: no folder '{path}'")
    epochs = [] if options.epochs is None else ["--epochs", str(options.epochs)]
    names = members(options.family)
    return options, {name: parse(["--arch", name, "--quiet", *epochs, *rest]) for name in names}, [*epochs, *rest]


def refuse(message: str):
    """Raise Refused, where an expression is needed."""
    raise Refused(" ".join(message.split()))


def opened(folder: Path, images: int, settings: Settings) -> dict[tuple, dict]:
    """Make or open the folder; the scores that it holds, by network. Raises Refused where they are of other settings."""
    asked = {"images": images, "settings": {name: value for name, value in method(settings).items() if name != "arch"}}
    asked = json.loads(json.dumps(asked))
    try:
        before = read_json(folder / "proxies.json", "record of scores", ASKED)
    except Missing:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise Refused(f"--out_dir: '{folder}' is in use, and not by scores of networks") from None
        folder.mkdir(parents=True, exist_ok=True)
        replace(folder / "proxies.json", as_json(asked, indent=1))
        return {}
    defaults = before["settings"] | {"images": before["images"]}
    for name, value in (asked["settings"] | {"images": images}).items():
        if defaults.get(name, value) != value:
            raise Refused(f"--out_dir: the scores in '{folder}' are with {name} {defaults[name]}, not {value}")
    try:
        *lines, _ = read_whole(folder / "scores.jsonl", "record of scores", MOST_JSON).split(b"\n")
    except Missing:
        return {}
    rows = [parse_json(line, folder / "scores.jsonl", "record of scores", SCORED) for line in lines]
    replace(folder / "scores.jsonl", b"".join(line + b"\n" for line in lines))  # without a line that is half written
    return {network_of(row["arch"]): row for row in rows}


def score(settings: Settings, images: int) -> dict:
    """The row of a network: its parameters, its MACs and its scores, None for one that is not finite."""
    import torch

    from pruning.context import Context
    from pruning.granularities import Unstructured
    from training.experiment import start

    began, run = time.monotonic(), start(settings)
    batches = list(run.task.sample(math.ceil(images / run.task.batch)))
    batch = tuple(torch.cat(parts)[:images] for parts in zip(*batches, strict=True))
    context = Context(run.model, Unstructured.groups, lambda: iter([batch]), settings.run.seed, task=run.task)
    values = {name: PROXIES.get(name)(context) for name in PROXIES.entries}
    scores = {name: value if math.isfinite(value) else None for name, value in values.items()}
    row = {"arch": settings.network.arch, "parameters": run.whole.parameters, "macs": run.whole.macs, "scores": scores}
    return row | {"seconds": round(time.monotonic() - began, 1)}


def train(arch: str, folder: Path, flags: list[str]) -> None:
    """Train a network by modeling.py into the folder, or go on there. Its failure is told, and the others are trained."""
    goes_on = (folder / "checkpoint.pt").exists()
    where = ["--resume", folder, *flags] if goes_on else ["--arch", arch, "--out_dir", folder, *flags]
    command = [sys.executable, Path(__file__).with_name("modeling.py"), *where, "--quiet"]
    status = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
    if status < 0 or status > 128:
        raise Failed(f"the training of {arch} was stopped: the same command goes on")
    if status:
        say(f"{arch} could not be trained")


def reached(paths: list[Path], networks: dict[tuple, str], dataset: str) -> dict[str, float]:
    """The test accuracy in % of each network, the mean of its runs; other runs are passed over, and it is said why."""
    accuracies: dict[str, list[float]] = {}
    for path in paths:
        try:
            run = read_run(path)
            arch = networks.get(network_of(run.arch))
        except (Missing, Damaged, Refused) as error:
            say(f"{error}; passed over")
            continue
        why = "is of no network of the family" if arch is None else "pruned" if run.pruned else ""
        why = why or ("has not ended" if run.summary is None else "" if run.data_set[0] == dataset else "learned other images")
        if why:
            say(f"the run '{path}' {why}; passed over")
        else:
            accuracies.setdefault(arch, []).append(run.summary["test"][run.metric])
    return {arch: statistics.mean(values) for arch, values in accuracies.items()}


def columns(rows: list[dict]) -> dict[str, list]:
    """The values of all networks by column: the scores, then parameters and MACs."""
    values = {name: [row["scores"].get(name) for row in rows] for name in PROXIES.entries}
    return values | {name: [row[name] for row in rows] for name in BASELINES}


def tables(rows: list[dict], accuracies: list[float | None]) -> str:
    """The page: how each score ranks the networks, and the scores themselves."""
    values, text = columns(rows), []
    known = any(accuracy is not None for accuracy in accuracies)
    if known:
        ranks = {name: rank_correlations(column, accuracies) for name, column in values.items()}
        lines = [
            {"score": name, **{word: "-" if found[word] is None else f"{found[word]:+.3f}" for word in ("spearman", "kendall")}}
            | {"n": found["n"]}
            for name, found in ranks.items()
        ]
        text += ["Rank correlation of each score with the test accuracy of trained networks:", "", write_table(lines, "markdown")]
        agreement, pairs = vote([values[name] for name in VOTERS], accuracies)
        if agreement is not None:
            voters = f"{', '.join(VOTERS[:-1])} and {VOTERS[-1]}"
            text += ["", f"The vote of {voters} names the better of two networks in {100 * agreement:.1f} % of {pairs} pairs."]
    else:
        text += ["No trained run is known, so that nothing is compared: name some by --runs, or train them by --epochs."]
    shown = [
        {"network": row["arch"]}
        | {name: "-" if column[number] is None else f"{column[number]:.4g}" for name, column in values.items()}
        | {"test accuracy %": "-" if accuracies[number] is None else f"{accuracies[number]:.2f}"}
        for number, row in enumerate(rows)
    ]
    return "\n".join([*text, "", write_table(shown, "markdown"), ""])


def main(argv: list[str]) -> None:
    """Score the family that the command line names, train it where that is asked for, and write table and figure."""
    options, family, flags = read(argv)
    folder = options.out_dir
    scored = opened(folder, options.images, next(iter(family.values())))
    for name, settings in family.items():
        if network_of(name) not in scored:
            row = score(settings, options.images) | {"arch": name}
            append(folder / "scores.jsonl", as_json(row))
            scored[network_of(name)] = row
            say(f"{name}: scored in {row['seconds']} s")
            for missing in (score for score, value in row["scores"].items() if value is None):
                say(f"{name}: {missing} is not finite, and left out of its ranks")
    own = {name: folder / "runs" / re.sub(r"[^\w.]+", "_", name).strip("_") for name in family}
    for name in family if options.epochs is not None else ():
        train(name, own[name], flags)
    paths = [*options.runs, *(path for path in own.values() if path.exists())]
    accuracies = reached(paths, {network_of(name): name for name in family}, next(iter(family.values())).data.dataset)
    rows, tested = [scored[network_of(name)] for name in family], [accuracies.get(name) for name in family]
    page = tables(rows, tested)
    replace(folder / "proxies.md", page.encode())
    macs = [math.log10(row["macs"]) for row in rows]  # what there is to compare with where nothing was trained
    heights, what = (tested, "test accuracy (%)") if accuracies else (macs, "log10 of the MACs; no accuracy is known")
    draw_scores(columns(rows), [row["arch"] for row in rows], heights, what, folder / "proxies.png")
    print(page, end="", flush=True)


def say(line: str) -> None:
    """Print a line on stderr."""
    print(one_line(f"proxies.py: {line}"), file=sys.stderr)


if __name__ == "__main__":
    with guard("proxies.py"):
        main(sys.argv[1:])
