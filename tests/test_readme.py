"""What the README, the pages of the packages and run.sh tell people to type is typed here, at a tiny size."""

import argparse
import importlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from boxes import voc_folder
from conftest import ROOT, TINY_DATA, run_program

import models
import report
import sensitivity
from settings import arguments, registry
from settings.registry import Registry

PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for page in (ROOT / "README.md", *sorted(ROOT.glob("[a-z]*/README.md")))
}
MANUAL = "\n".join(PAGES.values())
# run.sh is a test of its own below
RUN_SH = {"./run.sh quick", "./run.sh test", "./run.sh test -m core"}
TINY = [*TINY_DATA, "--batch_size", "18"]
DRY = ["--dry_run", *TINY_DATA, "--batch_size", "4"]
PRUNED = ["--layers", "20", "--prune_type", "structured", "--prune_rate", "0.6", "--reg", "reg_cov", "--epochs", "1"]


def pieces(text: str) -> list[tuple[str | None, str]]:
    """A page's prose, with language None, and its fenced blocks, with theirs ("" for output), in their order."""
    parts = re.split(r"^```(\w*)\n", text, flags=re.MULTILINE)
    assert len(parts) % 4 == 1, "a fence is not closed"
    languages = [None if number % 2 == 0 else parts[2 * number - 1] for number in range(len(parts) // 2 + 1)]
    return list(zip(languages, parts[::2], strict=True))


def blocks(language: str) -> list:
    """The fenced blocks of a language: a parameter for each, its page and its text."""
    numbered = [
        (page, number, block)
        for page, text in PAGES.items()
        for number, block in enumerate([block for name, block in pieces(text) if name == language], start=1)
    ]
    return [pytest.param(page, block, id=f"{page} {number}") for page, number, block in numbered]


class Block:
    """The commands of one block, typed one after the other in an empty folder.

    A training command is run for real, for two tiny epochs, where a later command needs what it writes; otherwise it is
    a dry run, which must write nothing, once for all pages. A run that the block takes for granted is made before the
    command that needs it.
    """

    dry_runs: ClassVar[set] = set()

    def __init__(self, text: str, capsys):
        self.lines, self.capsys = [line for line in text.splitlines() if line.strip()], capsys
        self.made_something, self.data = False, TINY_DATA
        if "--dataset voc" in text:
            self.data = ["--dataset", "voc", "--data_dir", str(voc_folder(Path("scans").absolute())), "--device", "cpu"]

    def run(self, *flags: str) -> None:
        # the images of the tests have a test part; their training images alone have none
        pool = ["--data_dir", f"{TINY_DATA[3]}/train"] if "--test_size" in flags else []
        run_program(*flags, *pool)
        assert re.search(r"result test (accuracy|mAP)|\w+\.png: (\w+ \d\.\d+|nothing)", self.capsys.readouterr().out)

    def type_all(self) -> None:
        for number, line in enumerate(self.lines):
            words = shlex.split(line, comments=True)
            words = words[: words.index(">")] if ">" in words else words
            if words[0].endswith("run.sh"):
                self.run_sh(words)
            elif words[:2] == ["python", "modeling.py"]:
                self.modeling(words[2:], "\n".join(self.lines[number + 1 :]))
            elif words[0] == "torchrun":  # several processes are the subject of tests/training/test_team.py
                self.modeling(words[words.index("modeling.py") + 1 :], "")
            elif words[:2] == ["python", "report.py"]:
                assert report.main([path for word in words[2:] for path in sorted(map(str, Path().glob(word)))]) == 0
            elif words[:2] == ["python", "sensitivity.py"]:
                self.stand_in(words[2])
                sensitivity.main([*words[2:], *TINY, "--rates", "0.5", "0.9"])
            elif words[:2] == ["python", "-c"]:
                exec(words[2], {})
            elif words[0] == "python":
                read_only(ROOT / words[1], words[2:])  # tests/test_proxies.py and tests/benchmarks/ run it
            else:
                assert words == [".", ".venv/bin/activate"], line

    def run_sh(self, words: list[str]) -> None:
        if words[1] == "table":
            table = importlib.import_module("benchmarks.table")
            assert table.main([*words[2:], "--list"]) == 0
        else:
            assert shlex.join(words) in RUN_SH

    def modeling(self, flags: list[str], later: str) -> None:
        flags = [re.sub(r"(ssd\w+)\(width=[\d.]+", r"\1(width=0.03", flag) for flag in flags]
        for flag in ("--resume", "--init", "--evaluate", "--predict", "--scratch"):
            if flag in flags:
                self.stand_in(flags[flags.index(flag) + 1])
        if "mynet.py:build" in flags:  # which stands on its page
            Path("mynet.py").write_text(example("models/README.md", "def build("))
        if "--unlabelled" in flags and not Path(folder := flags[flags.index("--unlabelled") + 1]).exists():
            shutil.copytree(Path(TINY_DATA[3]) / "test", folder)
        if {"--evaluate", "--predict"} & {*flags}:
            folder = Path(self.data[self.data.index("--data_dir") + 1])
            image = next(path for pattern in ("test/*/*.png", "JPEGImages/*.png") for path in folder.glob(pattern))
            for name in re.findall(r"\w+\.png", " ".join(flags)):
                shutil.copy(image, name)
            self.run(*flags)
        elif "--resume" in flags:
            self.run(*flags, *([] if self.made_something else ["--epochs", "2"]))
        elif needed(flags, later):
            self.made_something = True
            longer = ["--finetune_epochs", "1"] if "--finetune_epochs" in flags else []
            self.run(*flags, *self.data, "--batch_size", "18", "--epochs", "2", *longer)
        elif (command := tuple(flags)) not in self.dry_runs:
            before = sorted(Path().rglob("*"))
            # VGG, also that of the recipe slimming, halves its images five times
            large = ["--image_size", "32"] if re.search(r"\bvgg", " ".join(flags)) or "slimming" in flags else []
            flags = [flag.replace("500it", "50it") for flag in flags]  # so many steps 20 epochs of so few images have
            self.run(*flags, "--dry_run", *self.data, "--batch_size", "4", *large)
            assert sorted(Path().rglob("*")) == before
            self.dry_runs.add(command)

    def stand_in(self, path: str) -> None:
        """What the block takes for granted: a trained network, a pruned run of this default name, or a model file."""
        path = Path(path)
        if path.exists():
            return
        assert not self.made_something, f"nothing in the block makes {path}"
        if path.suffix in (".pth", ".th"):  # a state dict, as from elsewhere
            arch = {"akamaster": "resnet20(shortcut='pad')", "tv18": "resnet18(stem='imagenet')"}
            torch.save(models.build(arch[path.stem]).state_dict(), path)
        elif path.suffix == ".pt":
            self.run(*PRUNED, *TINY, "--compact", "--out_dir", str(path.parent / "run"))
            (path.parent / "run" / "model.pt").rename(path)
        elif path.name.startswith("dense"):
            self.run("--layers", "20", *TINY, "--epochs", "1", "--out_dir", str(path))
        else:
            depth = re.match(r"resnet(\d+)", path.name)[1]
            self.run(*PRUNED, *TINY, "--layers", depth)
        assert path.exists()


def needed(flags: list[str], later: str) -> bool:
    """Whether one of the later lines uses the folder that these flags make."""
    if "result/*" in later:
        return True
    if "--out_dir" in flags:
        return flags[flags.index("--out_dir") + 1] in later
    return "--resume" in later


class _Read(Exception):
    """The flags of a script have been accepted."""


def read_only(script: Path, flags: list[str]) -> None:
    """A script under benchmarks/ accepts these flags; tests/benchmarks/ runs them."""
    source = script.read_text(encoding="utf-8")
    if "argparse" not in source:  # kills.py takes a number, start.py the flags of modeling.py
        assert [word for word in flags if not word.isdecimal()] == [] or arguments.parse(flags)
        return

    def parse(self, *arguments, **options):
        known = original(self, *arguments, **options)
        raise _Read(known)

    with pytest.MonkeyPatch.context() as patch:
        name = "parse_known_args" if "parse_known_args(" in source else "parse_args"
        original = getattr(argparse.ArgumentParser, name)
        patch.setattr(argparse.ArgumentParser, name, parse)
        patch.setattr(sys, "argv", [str(script), *flags])
        with pytest.raises(_Read):
            runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize(("page", "block"), blocks("sh"))
def test_commands(page, block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Block(block, capsys).type_all()


@pytest.fixture
def help_text(capsys, monkeypatch):
    """What `python modeling.py --help` prints."""
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        arguments.parse(["--help"])
    return capsys.readouterr().out


def test_the_manual_names_what_there_is(help_text):
    flags = re.findall(r"^  (?:-h, )?(--\w+)", help_text, re.MULTILINE)
    assert {"--help", "--prune_rate", "--no_compile", "--deterministic"} <= {*flags}
    for flag in {*flags} - {"--help"}:
        assert f"`{flag}`" in MANUAL, f"{flag} is not in the manual"
    choices = {choice for listed in re.findall(r"^  --\w+ \{(.*?)\}", help_text, re.MULTILINE) for choice in listed.split(",")}
    assert {"structured", "balanced", "ksc2020"} <= choices
    for choice in choices:
        assert choice.isdecimal() or f"`{choice}`" in MANUAL, f"{choice} is not in the manual"
    for known in vars(registry).values():
        for name in known.entries if isinstance(known, Registry) else ():
            assert re.search(rf"`{name}[`(]", MANUAL), f"{known.kind} {name} is not in the manual"


def test_the_manual_names_no_flag_that_is_not_there(help_text):
    flags = set(re.findall(r"--\w+", help_text))
    for script in (ROOT / "report.py", ROOT / "sensitivity.py", ROOT / "proxies.py", *(ROOT / "benchmarks").glob("*.py")):
        flags |= set(re.findall(r'"(--[a-z_]+)"', script.read_text(encoding="utf-8")))
    flags |= {"--nproc_per_node", "--array", "--gpus", "--wrap"}  # of torchrun and sbatch
    assert set(re.findall(r"--[a-z_]+", MANUAL)) - flags == set()


def test_the_readme_is_short_and_lines_are():
    assert len(PAGES["README.md"].splitlines()) < 150
    for page, text in PAGES.items():
        # what a program printed, and tables, are as wide as they are
        lines = [line for language, part in pieces(text) if language != "" for line in part.splitlines()]
        for line in lines:
            assert line.startswith("|") or len(line) <= 120, f"{page}: {line}"


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    prose = "\n".join(part for language, part in pieces(text) if language is None)
    titles = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), f"{page}: {target}"


def test_every_package_has_its_page():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert {Path(page).parent.name for page in PAGES} - {""} == packages | {"benchmarks"}
    for page in PAGES.keys() - {"README.md"}:
        assert f"({page})" in PAGES["README.md"]


def test_the_plan_is_as_the_page_shows_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (command,) = (block for name, block in pieces(PAGES["training/README.md"]) if name == "sh" and "--dry_run" in block)
    run_program(*shlex.split(command)[2:], *DRY)
    plan = [line for line in capsys.readouterr().err.splitlines() if line.startswith("plan")]
    assert plan == re.findall(r"^plan, .*$", PAGES["training/README.md"], re.MULTILINE)
    assert len(plan) == 2


def example(page: str, holds: str = "") -> str:
    """The one Python example of a page that holds this text."""
    (source,) = (block for language, block in pieces(PAGES[page]) if language == "python" and holds in block)
    return source


def test_every_python_example_has_a_test():
    pages = {"models/README.md", "pruning/README.md", "tasks/README.md", "training/README.md"}
    assert {param.values[0] for param in blocks("python")} == pages


def test_the_criterion_is_one_file(tmp_path, two_blocks):
    """The example, put into a folder of criteria, is a flag and scores pieces of every granularity."""
    from pruning.context import Context
    from settings.registry import GRANULARITIES

    source = example("pruning/README.md")
    (tmp_path / "largest.py").write_text(source)
    criteria = Registry("criterion", "*.py", root=tmp_path)
    assert criteria.check("largest(power=2.0)") == ("largest", {"power": 2.0})
    assert criteria.entries["largest"].summary == "Largest weight: max |w|^power."
    scope = {}
    exec(source, scope)
    for granularity, shape in (("structured", (6,)), ("kernels", (6, 3)), ("unstructured", (6, 3, 3, 3))):
        context = Context(two_blocks, GRANULARITIES.get(granularity).groups, None, 0)
        assert scope["largest"](two_blocks.stem, context).shape == shape


def test_the_network_is_one_file(tmp_path):
    """The example, put into a folder of networks, is a flag; it is pruned, and made smaller with the same outputs."""
    from pruning import Pruner
    from pruning.removal import Removal

    source = example("models/README.md", "def small(")
    (tmp_path / "small.py").write_text(source)
    assert Registry("network", "*.py", root=tmp_path).check("small(classes=3)") == ("small", {"classes": 3})
    scope = {}
    exec(source, scope)
    network, images = scope["small"](classes=3), torch.randn(4, 3, 8, 8)
    network(images).sum().backward()
    Pruner(network, rate=0.5).update(0.5)
    smaller = Removal(network).compact().eval()
    with torch.no_grad():
        torch.testing.assert_close(smaller(images), network.eval()(images))
    assert sum(unit.filters for unit in smaller.units.values()) == 32


def test_the_procedure_is_one_file(tmp_path, monkeypatch, capsys):
    """The example, put into a folder of procedures, is a flag; its two stages are trained, and its plan is shown."""
    source = example("training/README.md")
    (tmp_path / "twice.py").write_text(source)
    procedures = Registry("procedure", "*.py", root=tmp_path)
    assert procedures.check("twice(factor=0.5)") == ("twice", {"factor": 0.5})
    scope = {}
    exec(source, scope)
    monkeypatch.setattr(registry.PROCEDURES, "entries", registry.PROCEDURES.entries | procedures.entries)
    monkeypatch.setattr(registry.PROCEDURES, "get", lambda _: scope["twice"])
    run_program("--layers", "20", "--procedure", "twice", *DRY)
    said = capsys.readouterr()
    assert "stage again: recalibrate(batches=50), then 300 epochs at learning rate 0.02" in said.err
    assert "train 1 ====>" in said.out
    assert "result recalibration" in said.out


# reads a command as modeling.py does and says its first line, so that what run.sh makes of its flags costs no import of torch
READER = """
import sys
from runs.console import header
from settings.arguments import parse
from settings.errors import guard
with guard("modeling.py"):
    print(header(parse(sys.argv[2:])))
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose environment is this one, so that run.sh has nothing to install."""
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(".*", "result", "data", "__pycache__", "benchmarks", "tests"))
    (checkout / ".venv" / "bin").mkdir(parents=True)
    python = checkout / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (checkout / ".venv" / "installed").touch()
    return checkout


@pytest.fixture
def reading(checkout):
    """The checkout with an interpreter that only reads what it is asked to run."""
    (checkout / "reader.py").write_text(READER)
    (checkout / ".venv" / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" reader.py "$@"\n')
    return checkout


def run_sh(checkout, *flags):
    env = {**os.environ, "PYTHONWARNINGS": "error"}
    return subprocess.run(["./run.sh", *flags], cwd=checkout, capture_output=True, text=True, env=env)


def test_run_sh_runs_the_paper_and_keeps_earlier_results(reading):
    first = run_sh(reading, "--layers", "20")
    assert first.returncode == 0, first.stderr
    result = reading / "result" / "prune_60_reg_07.txt"
    assert result.read_text() == first.stdout == "prune rate 0.6 regularization odecay 0.7\n"
    run_sh(reading, "--odecay", "0.5")
    assert result.read_text() == first.stdout
    assert (reading / "result" / "prune_60_reg_07-2.txt").read_text() == "prune rate 0.6 regularization odecay 0.5\n"
    refused = run_sh(reading, "--prune_rat", "0.5")
    assert refused.returncode == 2
    assert len(list((reading / "result").iterdir())) == 2
    # the flags at the top are there to be edited
    script = reading / "run.sh"
    script.write_text(script.read_text().replace("prune_type=structured", "prune_type=none").replace("reg=reg_cov", "reg=none"))
    dense = run_sh(reading, "--layers", "20")
    assert dense.stdout.startswith("prune rate 0.0 regularization odecay 0.0\n"), dense.stderr


def test_run_sh_quick(checkout):
    done = run_sh(checkout, "quick", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("prune rate 0.6 regularization odecay 0.7\n")
    assert "resnet20" in done.stderr
    assert "145 held out" in done.stderr


def test_run_sh_test_runs_the_tests(checkout):
    """Of a suite that has two tests."""
    (checkout / "tests").mkdir()
    (checkout / "tests" / "test_two.py").write_text(
        "import pytest\n@pytest.mark.core\ndef test_one(): pass\ndef test_other(): raise AssertionError\n"
    )
    done = run_sh(checkout, "test", "--maxprocesses", "1", "-m", "core")
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    done = run_sh(checkout, "test", "--maxprocesses", "1")
    assert done.returncode == 1
    assert "1 failed, 1 passed" in done.stdout


def test_run_sh_installs_what_is_missing(checkout):
    """With no environment it calls the interpreter named by PYTHON to make one, and installs requirements.txt into it."""
    shutil.rmtree(checkout / ".venv")
    fake = checkout / "python"
    fake.write_text(
        "#!/bin/sh\nsleep 0.2\n"
        'mkdir -p "$3/bin"; printf \'#!/bin/sh\\necho "$@" >> installed.txt\\n\' > "$3/bin/python"; chmod +x "$3/bin/python"\n'
    )
    fake.chmod(0o755)
    env = {**os.environ, "PYTHON": str(fake)}
    command, runs = ["./run.sh", "quick"], 3 if shutil.which("flock") else 1
    at_once = [subprocess.Popen(command, cwd=checkout, env=env, stderr=subprocess.PIPE, text=True) for _ in range(runs)]
    for process in at_once:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    subprocess.run(command, cwd=checkout, env=env, check=True)  # later
    calls = (checkout / "installed.txt").read_text().splitlines()
    assert [line.endswith("-r requirements.txt") for line in calls] == [True] + [False] * (runs + 1)  # installed by one
