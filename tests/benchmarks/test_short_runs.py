"""This test reads every command that benchmarks/short_runs.sh would run, and runs none."""

import os
import re
import shlex
import subprocess

import pytest
from conftest import ROOT

from settings.arguments import parse

SCRIPT = ROOT / "benchmarks" / "short_runs.sh"
SETS = re.findall(r"^(\w+)\)$", SCRIPT.read_text(), re.MULTILINE)


def begun(out, chosen: str, **environment: str) -> subprocess.CompletedProcess:
    """What the script does with a set where each command is only written down, as its run's result.txt."""
    environment = os.environ | {"PYTHON": "printf %q\\\\n", "RUN": str(out), "SEEDS": "0 1"} | environment
    return subprocess.run(["bash", SCRIPT, out, chosen], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("chosen", SETS)
def test_every_command_of_a_set_is_one_of_modeling_py(chosen, tmp_path):
    done = begun(tmp_path, chosen)
    assert (done.returncode, done.stderr) == (0, "")
    results = sorted(tmp_path.glob("*/result.txt"))
    assert len(results) > 1
    for result in results:  # others begin with what these leave
        (result.parent / "model.pt").touch()
    for result in results:
        script, *flags = shlex.split(result.read_text())
        assert script == "modeling.py"
        settings = parse(flags)
        assert settings.run.out_dir == str(result.parent)
        assert settings.engine.threads == 1
    # a run that has ended is left alone, one that was begun goes on
    (results[0].parent / "summary.json").touch()
    (results[1].parent / "config.json").touch()
    results[0].unlink()
    assert begun(tmp_path, chosen).returncode == 0
    assert not results[0].exists()
    assert results[1].read_text().split() == ["modeling.py", "--resume", str(results[1].parent)]


def test_an_unknown_set_is_named_and_a_dense_run_is_asked_for(tmp_path):
    done = begun(tmp_path, "ticket")
    assert done.returncode == 2
    assert re.fullmatch(f"short_runs.sh: unknown set 'ticket': {', '.join(SETS[:-1])} or {SETS[-1]}\n", done.stderr)
    assert "a dense run of ResNet-20" in begun(tmp_path, "teachers", RUN="").stderr
