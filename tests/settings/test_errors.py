"""These tests check how commands end: by one line and a status or, where nobody reads on, without a word."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from settings.errors import Failed, Refused, Stopped, guard

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Refused("no"), 2),
        (Failed("no"), 1),
        (OSError("no"), 1),
        (Stopped(signal.SIGTERM, "no"), 143),
    ],
)
def test_an_error_is_a_line_and_a_status(capsys, error, status):
    with pytest.raises(SystemExit) as end, guard("some.py"):
        raise error
    assert (end.value.code, capsys.readouterr().err) == (status, "some.py: error: no\n")


def into_a_closed_pipe(*command):
    """Run a command whose stdout nobody reads; its status and what it said on stderr."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("modeling.py", "--help"),
        ("sensitivity.py", "--help"),
        ("report.py", "benchmarks/runs/dense", "--no_plots"),
        ("benchmarks/table.py", "--list"),
        ("benchmarks/frozen.py", "--help"),
    ],
    ids=lambda command: command[0],
)
def test_a_command_ends_quietly_where_nobody_reads_on(command):
    """As in `report.py ... | head`."""
    status, said = into_a_closed_pipe(*command)
    assert said == ""
    # argparse itself passes over a help that cannot be written
    assert status == 128 + signal.SIGPIPE or (command[-1] == "--help" and status == 0)


def test_an_error_is_told_also_where_nobody_reads_on():
    status, said = into_a_closed_pipe("modeling.py", "--prune_typ", "structured")
    assert (status, said.count("\n")) == (2, 1)
