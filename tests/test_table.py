"""The paper's table at a tiny size: rows run, go on, are tabulated and kept."""

import json
import shlex
import sys
import time

import pytest
from conftest import ROOT, TINY_DATA, run_program

import arguments

sys.path.insert(0, str(ROOT / "benchmarks"))
import table

EXTRA = ["--", *TINY_DATA, "--batch_size", "18", "--threads", "1", "--quiet"]


def run(place, *flags):
    return table.main(["--layers", "20", "--epochs", "2", "--out", str(place), *flags, *EXTRA])


def test_rows_run_once_and_the_control_waits_for_its_network(tmp_path, capsys):
    assert run(tmp_path, "--row", "scratch_60") == table.AGAIN
    assert "scratch_60 waits for the smaller network of ours_both" in capsys.readouterr().err
    assert run(tmp_path, "--row", "0") == 0
    out = capsys.readouterr().out
    assert "| ours_both | 82.28 | 71.34 |" in out
    assert (tmp_path / "table.md").read_text() == out
    assert "--prune_rate 0.6 --reg reg_cov --odecay 0.7 --compact" in out
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
    flags = ["--layers", "20", "--seed", "0", "--prune_type", "none", *EXTRA[1:]]
    run_program(*flags, "--epochs", "1", "--out_dir", str(tmp_path / "dense"))
    (tmp_path / "dense" / "summary.json").unlink()
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    config["settings"]["epochs"] = 2
    (tmp_path / "dense" / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    assert run(tmp_path, "--list") == 0
    listed = capsys.readouterr().out
    assert "dense                1 of 2 epochs      python modeling.py --resume" in listed
    assert "ours_95              not begun" in listed
    assert run(tmp_path, "--row", "dense") == 0
    assert len((tmp_path / "dense" / "metrics.jsonl").read_text().splitlines()) == 2
    assert run(tmp_path, "--tabulate") == 0
    assert "dense" in capsys.readouterr().out


def test_a_slice_ends_in_time_and_says_what_is_left(tmp_path, capsys):
    began = time.monotonic()
    # ten seconds are kept for the run to end: 9 s of work are far too few for all these epochs
    assert table.main(
        ["--layers", "20", "--epochs", "5000", "--out", str(tmp_path), "--row", "dense", "--minutes", "0.32", *EXTRA]
    ) == table.AGAIN  # fmt: skip
    assert time.monotonic() - began < 25
    assert "left: dense" in capsys.readouterr().err
    assert not (tmp_path / "dense" / "summary.json").exists()


def test_a_row_that_fails_is_told_and_a_wrong_one_refused(tmp_path, capsys):
    assert table.main(["--out", str(tmp_path), "--row", "dense", "--", "--no_such_flag"]) == 1
    assert "dense failed with status 2" in capsys.readouterr().err
    assert table.main(["--out", str(tmp_path), "--row", "nothing"]) == 2
    assert "no row 'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize(("layers", "rows"), [(56, 46), (20, 43)])
def test_the_plan(layers, rows, tmp_path):
    """Six rows a seed, ResNet-50 beside ResNet-56, and four rows a rate of the sweep; every command is a legal one."""
    planned = table.plan(layers, [0, 1], tmp_path)
    assert len({row.name for row in planned}) == len(planned) == rows
    assert [row.name for row in planned[:6]] == ["ours_both", "ours_pruning", "ksc2020", "dense", "decorrelation", "paper"]
    for row in planned:
        if row.after is None:
            settings = arguments.parse(shlex.split(row.flags))
            assert settings.arch == ("resnet50" if row.name.startswith("resnet50") else f"resnet{layers}")
