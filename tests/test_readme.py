"""What the README and run.sh tell people to type is typed here, at a tiny size."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY, TINY_DATA

import modeling
import report
import sensitivity
from modeling import run_name
from settings import arguments
from settings.registry import CRITERIA, PHASES, REGULARIZERS, SCHEDULES, SCOPES, Registry

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines()]
COMMANDS = sorted(
    {line for line in LINES if line.startswith("python modeling.py") and not re.search("--(resume|evaluate|predict|init)", line)}
)
DRY = ["--dry_run", *TINY_DATA, "--batch_size", "4"]


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_commands(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = shlex.split(command.split(">")[0])[2:]
    arguments.parse(flags)
    modeling.main(arguments.parse([*flags, *DRY, *(["--image_size", "32"] if "vgg16" in flags else [])]))
    out = capsys.readouterr().out
    assert "result test accuracy" in out
    assert list(tmp_path.iterdir()) == []


def test_the_readme_names_what_there_is():
    assert "./run.sh quick" in LINES
    assert "./run.sh test" in LINES
    assert len(COMMANDS) == 8
    flags = [action.option_strings[-1] for action in arguments.build_parser()._actions]
    for flag in flags[1:]:
        assert flag in README, f"{flag} is not in the README"
    for flag in set(re.findall(r"--[a-z_]+", README)):
        assert flag in flags or flag in (
            "--help",
            "--format",
            "--layers",
            "--plots",
            "--no_plots",
            "--minutes",
            "--row",
            "--nproc_per_node",
            "--array",
            "--gpus",
            "--wrap",
            "--tabulate",
            "--out",
            "--plot",
        ), f"{flag} is in the README only"
    for registry in (CRITERIA, SCOPES, PHASES, SCHEDULES, REGULARIZERS):
        for name in registry.entries:
            assert f"`{name}`" in README, name


def test_the_readme_criterion_is_one_file(tmp_path, two_blocks):
    """The example, put into a folder of criteria, is a flag and scores both granularities."""
    from pruning.context import Context
    from pruning.granularities import GRANULARITIES

    source = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    (tmp_path / "largest.py").write_text(source)
    registry = Registry("criterion", "*.py", root=tmp_path)
    assert registry.check("largest(power=2.0)") == ("largest", {"power": 2.0})
    assert registry.entries["largest"].summary == "Largest weight: max |w|^power."
    scope = {}
    exec(source, scope)
    for granularity, shape in (("structured", (6,)), ("unstructured", (6, 3, 3, 3))):
        context = Context(two_blocks, GRANULARITIES[granularity].groups, None, 0)
        assert scope["largest"](two_blocks.stem, context).shape == shape


def test_readme_commands_on_records(tmp_path, monkeypatch, capsys):
    """--resume and report.py, on a run of the folder name that the README shows."""
    monkeypatch.chdir(tmp_path)
    resume, table = (next(line for line in LINES if part in line) for part in ("--resume", "report.py"))
    folder = shlex.split(resume)[3]
    flags = ["--prune_type", "structured", "--prune_rate", "0.6", "--reg", "reg_cov"]
    assert run_name(arguments.parse(flags)) == Path(folder).name
    modeling.main(arguments.parse([*TINY, *flags, "--epochs", "1", "--out_dir", folder]))
    modeling.main(arguments.parse(["--resume", folder, "--epochs", "2"]))
    capsys.readouterr()
    words = [
        word for part in shlex.split(table)[2:] for word in (sorted(map(str, tmp_path.glob(part))) if "*" in part else [part])
    ]
    assert report.main(words) == 0
    assert "| resnet50-structured-0.6-reg_cov | 1 |" in capsys.readouterr().out
    assert (tmp_path / "result" / "plots" / "accuracy.png").exists()


def test_readme_commands_that_begin_with_a_trained_network(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    block = next(block for block in BLOCKS if "--init" in block).splitlines()
    tiny = [*TINY_DATA, "--batch_size", "18"]
    lines = [line for line in block if "--preset" not in line]
    assert ["sensitivity.py" in line for line in lines] == [False, False, False, True, False]
    for line in lines:
        words = shlex.split(line.split(">")[0])[2:]
        if "sensitivity.py" in line:
            sensitivity.main([*words, *tiny, "--rates", "0.5", "0.9"])
            assert len(json.loads((tmp_path / "scan.json").read_text())["layers"]) == 21
            assert (tmp_path / "scan.png").exists()
            assert "| stage3.2.conv2 | 64 |" in capsys.readouterr().out
        else:
            modeling.main(arguments.parse([*words, *tiny, "--epochs", "2"]))
            assert "result test accuracy" in capsys.readouterr().out


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose environment is this one, so that run.sh has nothing to install."""
    place = tmp_path / "checkout"
    shutil.copytree(ROOT, place, ignore=shutil.ignore_patterns(".*", "result", "data", "__pycache__", "benchmarks"))
    (place / ".venv" / "bin").mkdir(parents=True)
    python = place / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (place / ".venv" / "installed").touch()
    return place


def run_sh(place, *flags):
    env = {**os.environ, "PYTHONWARNINGS": "error"}
    return subprocess.run(["./run.sh", *flags], cwd=place, capture_output=True, text=True, env=env)


def test_run_sh_runs_the_paper_and_keeps_earlier_results(checkout):
    first = run_sh(checkout, *DRY, "--layers", "20")
    assert first.returncode == 0, first.stderr
    result = checkout / "result" / "prune_60_reg_07.txt"
    assert result.read_text() == first.stdout
    assert first.stdout.startswith("prune rate 0.6 regularization odecay 0.7\n")
    run_sh(checkout, *DRY, "--layers", "20", "--seed", "1")
    assert result.read_text() == first.stdout
    assert (checkout / "result" / "prune_60_reg_07-2.txt").read_text().startswith("prune rate 0.6")
    refused = run_sh(checkout, "--prune_rat", "0.5")
    assert refused.returncode == 2
    assert len(list((checkout / "result").iterdir())) == 2
    # the flags at the top are there to be edited
    script = checkout / "run.sh"
    script.write_text(script.read_text().replace("prune_type=structured", "prune_type=none").replace("reg=reg_cov", "reg=none"))
    dense = run_sh(checkout, *DRY, "--layers", "20")
    assert dense.stdout.startswith("prune rate 0.0 regularization odecay 0.0\n"), dense.stderr


def test_run_sh_quick(checkout):
    done = run_sh(checkout, "quick", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("prune rate 0.6 regularization odecay 0.7\n")
    assert "resnet20" in done.stderr
    assert "145 held out" in done.stderr


def test_run_sh_test_runs_the_tests(checkout):
    done = run_sh(checkout, "test", "--maxprocesses", "1", "tests/settings/test_registry.py")
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d+ passed", done.stdout)


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
