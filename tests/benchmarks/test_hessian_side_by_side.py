"""This test runs the comparison of cuts by the Hessian at a tiny size, and goes on with it."""

import json
import re
import sys
from types import SimpleNamespace

import programs
import pytest
from conftest import ROOT, TINY, run_program

sys.path.insert(0, str(ROOT))
from benchmarks import hessian


def test_methods_are_compared_and_go_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.records.subprocess", SimpleNamespace(run=programs.run))
    monkeypatch.setattr(hessian, "METHODS", [("L1", "hessian(images=18, block=10)"), ("OBD", "none")])
    run_program(*TINY, "--epochs", "1", "--out_dir", str(tmp_path / "dense"))
    records, table = tmp_path / "records.jsonl", tmp_path / "table.md"
    flags = [str(tmp_path / "dense"), "--steps", "1", "--threads", "1", "--records", str(records), "--table", str(table)]
    hessian.main([*flags, "--seeds", "0", "--rates", "0.95"])
    first = records.read_text()
    records.write_text(first + '{"broken off')
    with records.open("a") as file:
        file.write("\n")
    hessian.main([*flags, "--seeds", "0", "--rates", "0.95", "0.9"])
    lines = [json.loads(line) for line in records.read_text().splitlines() if "broken" not in line]
    assert records.read_text().startswith(first)
    assert [(line["criterion"], line["rate"]) for line in lines] == [("L1", 0.95), ("OBD", 0.95), ("L1", 0.9), ("OBD", 0.9)]
    assert [len(line["records"]) for line in lines] == [1, 0, 1, 0]
    assert all(abs(1 - line["rate"] - line["weights"]) < 1e-5 and line["steps"] == 1 and line["peak GB"] > 0 for line in lines)
    rows = re.findall(r"^\| (L1|OBD) \| .*? \| ([\d.]+) \|.* \| 1 \|$", table.read_text(), re.MULTILINE)
    assert [(name, float(left)) for name, left in rows] == [("L1", 10), ("OBD", 10), ("L1", 5), ("OBD", 5)]
    with pytest.raises(SystemExit, match="was begun otherwise"):
        hessian.main([*flags, "--lr", "0.5"])
