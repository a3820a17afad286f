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


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "not enough memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
            "not enough memory",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "not enough memory"),
    ],
)
def test_a_lack_of_memory_is_a_line_with_a_cure(capsys, error, said):
    with pytest.raises(SystemExit) as end, guard("some.py"):
        raise error
    assert end.value.code == 1
    assert capsys.readouterr().err == f"some.py: error: {said}: try a smaller --batch_size, or images of fewer pixels\n"


def test_an_error_of_the_program_itself_stays_a_traceback():
    with pytest.raises(RuntimeError, match="shapes"), guard("some.py"):
        raise RuntimeError("shapes differ")


def test_a_message_is_one_line_whatever_names_are_in_it(capsys):
    with pytest.raises(SystemExit), guard("some.py"):
        raise Refused("no class '\x1b[31mred\nnext\udcff' in 가")
    assert capsys.readouterr().err == "some.py: error: no class '\\x1b[31mred\\nnext\\udcff' in 가\n"


TELL = """
import sys
from settings.errors import guard
with guard("some.py", goes_on=True):
    for number in range(9):
        print("개 ±", number, flush=True)
    open(sys.argv[1], "w").write("done")
"""


def tell(tmp_path, **streams):
    """A program that says more than anybody reads, then writes its result; its status, stderr, and whether it came so far."""
    program = [sys.executable, "-c", TELL, str(tmp_path / "result")]
    done = subprocess.run(program, cwd=ROOT, text=True, **{"stderr": subprocess.PIPE, **streams})
    return done.returncode, done.stderr, (tmp_path / "result").exists()


def test_a_program_that_goes_on_comes_to_its_end_where_nobody_reads_on(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    assert tell(tmp_path, stdout=writer) == (0, "", True)
    os.close(writer)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_no_fault(tmp_path, closed):
    result = tmp_path / "result"
    done = subprocess.run(["sh", "-c", f'"$0" -c "$1" "$2" {closed}', sys.executable, TELL, str(result)], cwd=ROOT)
    assert done.returncode == 0
    assert result.read_text() == "done"  # and nothing that was printed is in it


def test_an_output_that_cannot_be_written_fails_at_the_end(tmp_path):
    with open("/dev/full", "w") as full:
        status, said, came = tell(tmp_path, stdout=full)
    assert (status, came) == (1, True)
    assert said == "some.py: error: not all of stdout could be written: No space left on device\n"


def test_letters_that_an_output_lacks_are_escapes(tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    program = [sys.executable, "-c", TELL, str(tmp_path / "result")]
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "\\uac1c \\xb1 0")
