"""This test runs the comparison of reconstructions at a tiny size, and goes on with it."""

import json
import re
import sys
from types import SimpleNamespace

import programs
import pytest
from conftest import ROOT, TINY, run_program

sys.path.insert(0, str(ROOT))
from benchmarks import reconstruction


def test_methods_are_compared_and_go_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.records.subprocess", SimpleNamespace(run=programs.run))
    monkeypatch.setattr(reconstruction, "METHODS", [("L1", "least_squares(rows=600)"), ("random", "none")])
    run_program(*TINY, "--epochs", "1", "--out_dir", str(tmp_path / "dense"))
    records, table = tmp_path / "records.jsonl", tmp_path / "table.md"
    flags = [str(tmp_path / "dense"), "--steps", "1", "--threads", "1", "--records", str(records), "--table", str(table)]
    reconstruction.main([*flags, "--seeds", "0"])
    first = records.read_text()
    records.write_text(first + '{"broken off')
    with records.open("a") as file:
        file.write("\n")
    reconstruction.main([*flags, "--seeds", "0", "1"])
    lines = [json.loads(line) for line in records.read_text().splitlines() if "broken" not in line]
    assert records.read_text().startswith(first)
    assert [(line["criterion"], line["seed"]) for line in lines] == [("L1", 0), ("random", 0), ("L1", 1), ("random", 1)]
    assert lines[0]["error"] < 1
    assert lines[1]["error"] is None
    assert all(0.4 < line["macs"] <= 0.5 and line["steps"] == 1 and line["peak GB"] > 0 for line in lines)
    rows = re.findall(r"^\| (L1|random) \| (.*) \|$", table.read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == ["L1", "random"]
    assert all(cells.endswith("| 2") for _, cells in rows)
    with pytest.raises(SystemExit, match="was begun otherwise"):
        reconstruction.main([*flags, "--lr", "0.5"])
