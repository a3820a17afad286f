"""The paper's table at a tiny size: rows run, go on, are tabulated and kept."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import programs
import pytest
from conftest import ROOT, TINY_DATA, run_program

from settings import arguments

sys.path.insert(0, str(ROOT / "benchmarks"))
import table

# a row's command lets its file descriptors and session go their own way; the rest is that of subprocess.Popen
PROCESSES = SimpleNamespace(
    Popen=lambda command, stdout, stderr, **_: programs.Program(command[1:], stdout=stdout, stderr=stderr)
)
EXTRA = ["--", *TINY_DATA, "--batch_size", "18", "--threads", "1", "--quiet"]


@pytest.fixture(autouse=True)
def _forked(monkeypatch):
    monkeypatch.setattr(table, "subprocess", PROCESSES)


def run(place, *flags):
    return table.main(["--layers", "20", "--epochs", "2", "--out", str(place), *flags, *EXTRA])


def row(name, *flags):
    """The same row's run, made by the program itself."""
    return ["--layers", "20", "--seed", "0", "--prune_type", "none", *EXTRA[1:], "--out_dir", str(name), *flags]


def test_rows_run_once_and_the_control_waits_for_its_network(tmp_path, capsys):
    assert run(tmp_path, "--row", "scratch_60") == table.AGAIN
    assert "scratch_60 waits for the smaller network of ours_both" in capsys.readouterr().err
    assert run(tmp_path, "--row", "0") == 0
    out = capsys.readouterr().out
    assert "| ours_both | 1 (0) | 82.28 (last epoch 77.52) | 71.34 |" in out
    assert (tmp_path / "table.md").read_text() == out
    assert "--prune_rate 0.6 --compact --reg reg_cov --odecay 0.7" in out
    assert str(tmp_path) not in out
    stamp = (tmp_path / "ours_both" / "summary.json").stat().st_mtime_ns
    assert run(tmp_path, "--row", "ours_both") == 0
    assert (tmp_path / "ours_both" / "summary.json").stat().st_mtime_ns == stamp
    assert run(tmp_path, "--row", "scratch_60", "--keep", str(tmp_path / "kept")) == 0
    pruned, scratch = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("ours_both", "scratch_60"))
    assert pruned["left"] == scratch["left"]
    kept = "".join(file.read_text() for file in (tmp_path / "kept").rglob("*.*") if file.is_file())
    assert '"data_dir": "data"' in kept
    assert str(tmp_path) not in kept
    assert TINY_DATA[3] not in kept


def test_a_row_that_was_stopped_goes_on(tmp_path, capsys):
    run_program(*row(tmp_path / "dense", "--epochs", "1"))
    (tmp_path / "dense" / "summary.json").unlink()
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    config["settings"]["epochs"] = 2
    (tmp_path / "dense" / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    assert run(tmp_path, "--list") == 0
    listed = capsys.readouterr().out
    assert f"dense                    1 of 2 epochs      python modeling.py --resume {tmp_path}/dense" in listed
    assert "ours_95                  not begun" in listed
    assert run(tmp_path, "--row", "dense") == 0
    assert len((tmp_path / "dense" / "metrics.jsonl").read_text().splitlines()) == 2
    assert run(tmp_path, "--tabulate") == 0
    assert "dense" in capsys.readouterr().out


def test_seeds_are_one_line_and_an_unfinished_run_is_marked(tmp_path, capsys):
    for seed in (1, 2):
        assert run(tmp_path, "--seeds", "1", "2", "--row", f"dense_seed{seed}") == 0
    capsys.readouterr()
    assert run(tmp_path, "--seeds", "1", "2", "--tabulate") == 0
    out = capsys.readouterr().out
    assert out.count("| dense_seed1 | 2 (1, 2) | 88.57 |") == 1
    assert " ± " in out
    (tmp_path / "dense_seed2" / "summary.json").unlink()
    run(tmp_path, "--seeds", "1", "2", "--tabulate")
    assert "dense_seed2 (unfinished: 2 of 2)" in capsys.readouterr().out


def test_a_run_that_was_stopped_while_it_was_measured_is_not_finished(tmp_path):
    assert run(tmp_path, "--row", "ours_pruning") == 0
    file = tmp_path / "ours_pruning" / "summary.json"
    summary = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in summary.items() if name != "speed"}))
    assert run(tmp_path, "--row", "ours_pruning") == 0
    assert "speed" in json.loads(file.read_text())


def test_a_slice_ends_in_time_and_says_what_is_left(tmp_path, capsys):
    began = time.monotonic()
    # half of so short a slice is kept for the run to end: the rest is far too little for all these epochs
    assert table.main(
        ["--layers", "20", "--epochs", "5000", "--out", str(tmp_path), "--row", "dense", "--minutes", "0.1", *EXTRA]
    ) == table.AGAIN  # fmt: skip
    assert time.monotonic() - began < 8
    assert "left: dense; go on with ./run.sh table --layers 20" in capsys.readouterr().err
    assert not (tmp_path / "dense" / "summary.json").exists()


def test_a_row_of_another_process_is_passed_over_and_left_alone(tmp_path, capsys):
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / "result.txt").write_text("half of it")
    with (tmp_path / "dense" / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run(tmp_path, "--row", "dense") == table.AGAIN
    assert "dense is passed over: another process is writing to it" in capsys.readouterr().err
    assert (tmp_path / "dense" / "result.txt").read_text() == "half of it"


def test_ctrl_c_stops_the_run_after_its_step_and_nothing_is_lost(tmp_path):
    flags = ["--layers", "20", "--epochs", "5000", "--out", str(tmp_path), "--row", "dense", *EXTRA]
    program = subprocess.Popen([sys.executable, "benchmarks/table.py", *flags], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    rows, end = tmp_path / "dense" / "metrics.jsonl", time.monotonic() + 60
    while not (rows.exists() and rows.read_text()) and time.monotonic() < end:
        time.sleep(0.1)
    program.send_signal(signal.SIGINT)
    said = program.communicate(timeout=30)[1]
    assert program.returncode == 128 + signal.SIGINT
    assert "left: dense; go on with" in said
    assert "Traceback" not in said + (tmp_path / "dense" / "stderr.txt").read_text()
    assert (tmp_path / "dense" / "checkpoint.pt").exists()


def test_a_row_that_fails_is_told(tmp_path, capsys):
    assert table.main(
        ["--out", str(tmp_path), "--row", "dense", "--", "--dataset", "folder", "--data_dir", str(tmp_path / "none")]
    ) == 1  # fmt: skip
    said = capsys.readouterr().err
    assert "dense failed with status 2: modeling.py: error: " in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--row", "nothing"], "no row 'nothing'"),
        (["--epochs", "0"], "--epochs"),
        (["--layers", "21"], "no ResNet has 21 layers"),
        (["--seeds", "-1"], "--seed"),
        (["--minutes", "0"], "--minutes 0 is no time"),
        (["--quiet"], "flags of modeling.py go behind --"),
        (["--", "--no_such_flag"], "unknown argument '--no_such_flag'"),
        (["--", "--epochs", "3"], "--epochs is chosen by the table"),
        (["--out", os.devnull], os.devnull),
    ],
)
def test_a_wrong_command_is_refused_before_anything_runs(tmp_path, monkeypatch, capsys, flags, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        table.main(flags)
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert not list(tmp_path.iterdir())


def test_a_run_that_began_otherwise_is_refused(tmp_path, capsys):
    run_program(*row(tmp_path / "dense", "--epochs", "1"))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run(tmp_path, "--row", "dense")
    assert "has --epochs 1, not 2: name another --out" in capsys.readouterr().err


@pytest.mark.parametrize(("layers", "rows"), [(56, 46), (20, 43)])
def test_the_plan(layers, rows):
    """Six rows a seed, ResNet-50 beside ResNet-56, and four rows a rate of the sweep; every command is a legal one."""
    planned = table.plan(layers, [0, 1], "result/table")
    assert len({row.name for row in planned}) == len(planned) == rows
    assert [row.name for row in planned[:6]] == ["ours_both", "ours_pruning", "ksc2020", "dense", "decorrelation", "paper"]
    for planned_row in planned:
        if planned_row.after is None:
            settings = arguments.parse(planned_row.flags)
            assert settings.network.arch == ("resnet50" if planned_row.name.startswith("resnet50") else f"resnet{layers}")
