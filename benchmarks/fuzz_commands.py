"""This benchmark types odd command lines: `python benchmarks/fuzz_commands.py`.

It makes four tiny runs and draws command lines, chosen by --seed, from the table of flags: plain values, those at and
beyond the limits, of another type, entries of registries with odd options, and misspelt flags. Each line must be refused in
one line, or be carried out as it was typed, up to the first step. The command ends with status 1 if one leads to a
traceback, takes more than 20 s, or is accepted with another value of a flag than the one that was typed.
"""

import argparse
import random
import shlex
import shutil
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import modeling
from benchmarks.fuzz_files import Reader, outcome, workplace
from benchmarks.fuzz_lines import BEGINNINGS, command_line
from deploy import use
from settings.arguments import Settings, parse
from settings.errors import one_line
from settings.flags import FLAGS
from settings.registry import parse_call

OUTCOMES = ("refused", "accepted", "traceback", "hang", "silent change")


def as_typed(name: str, typed, resolved) -> bool:
    """Return whether a flag's resolved value is the typed one, or one that the manual says other flags make of it."""
    if name in ("arch", "augment"):  # --shortcut becomes an option of the first, the data set's own the base of the second
        (asked, options), (network, more) = parse_call(typed), parse_call(resolved)
        return asked == network and options.items() <= more.items()
    return type(typed) is type(resolved) and typed == resolved


def changed(argv: list[str], settings: Settings) -> list[str]:
    """Return the flags whose value in resolved settings is not the last one that this command line holds for them."""
    typed: dict = {}
    for number, word in enumerate(argv):
        name, equals, text = word.removeprefix("--").removeprefix("no_").partition("=")
        if not word.startswith("--") or name not in FLAGS or (name == "out_dir" and settings.run.resume):
            continue
        flag, values = FLAGS[name], [text] if equals else []
        if not equals:
            for following in argv[number + 1 :]:
                if following.startswith("--") or (values and not flag.nargs):
                    break
                values.append(following)
        read = [(flag.type or str)(text) for text in values]
        typed[name] = not word.startswith("--no_") if flag.action else read if flag.nargs else read[0]
    return [name for name, said in typed.items() if not as_typed(name, said, settings.flat[name])]


class Typed:
    """What becomes of the settings of a command line: those that the parser made, and those with which a run begins."""

    def __init__(self):
        self.seen: list[Settings] = []

    def carry_out(self, argv: list[str]) -> None:
        settings = parse(argv)
        self.seen = [settings]
        (use.main if settings.use.evaluate or settings.use.predict else modeling.main)(settings)

    def instead_of_training(self, run, folder, rows) -> None:
        self.seen.append(run.settings)
        run.move_masks(run.plan.first_epoch(run.stage), 0)


def tried(argv: list[str], typed: Typed) -> tuple[str, str]:
    """Carry out a command line up to its first step; returns its outcome and what there is to say about that."""
    for path in (*Path().glob("new*"), Path("result")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    how, said = outcome(Reader("no file", "", "", argv, typed.carry_out))
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)
    if how == "accepted" and (names := sorted({name for settings in typed.seen for name in changed(argv, settings)})):
        return "silent change", ", ".join(f"{name} {typed.seen[-1].flat[name]!r}" for name in names)
    return how, said


def fuzz(lines: int, seed: int, tell: Callable[[str], object]) -> dict[str, Counter]:
    """Carry out so many command lines; returns the outcomes of each beginning, and tells those that are wrong."""
    chance, counts = random.Random(f"commands {seed}"), {name: Counter() for name in BEGINNINGS}
    typed, own, urlopen = Typed(), modeling.carry_out, urllib.request.urlopen
    modeling.carry_out, urllib.request.urlopen = typed.instead_of_training, no_network
    try:
        for _ in range(lines):
            beginning = chance.choice(list(BEGINNINGS))
            argv = command_line(beginning, chance)
            how, said = tried(argv, typed)
            counts[beginning][how] += 1
            if how in OUTCOMES[2:]:
                tell(f"{how}: {one_line(shlex.join(argv))}: {said[-400:]!r}")
    finally:
        modeling.carry_out, urllib.request.urlopen = own, urlopen
    return counts


def no_network(*_, **__):
    raise OSError("no network while command lines are tried")


def main(argv: list[str]) -> int:
    """Try so many command lines as the command line says; returns 1 if something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=2000, help="command lines (default 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the lines (default 0)")
    options = parser.parse_args(argv)
    began = time.monotonic()
    with workplace():
        counts = fuzz(options.lines, options.seed, lambda line: print(line, file=sys.stderr, flush=True))
    print(f"| begins with | {' | '.join(OUTCOMES)} |\n|---|{'---|' * len(OUTCOMES)}")
    for name, row in {**counts, "all": sum(counts.values(), Counter())}.items():
        print(f"| {name} | {' | '.join(str(row[how]) for how in OUTCOMES)} |")
    print(f"\n{time.monotonic() - began:.0f} s")
    return int(any(row[how] for row in counts.values() for how in OUTCOMES[2:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
