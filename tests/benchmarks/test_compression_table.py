"""This test makes the table of what each step makes of one network, at a tiny size, and goes on with it."""

import json
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY_DATA, run_program

sys.path.insert(0, str(ROOT))
from benchmarks import compression
from deploy import measure
from runs.records import read_run
from settings.errors import Refused

LENET = ["--arch", "lenet5", "--image_size", "28", "--lr", "0.01"]  # few layers, so that files are written soon


def in_this_process(folder, flags, machine):
    """As `run_in`, for a run that has not begun; no time is measured."""
    if not (folder / "summary.json").exists():
        run_program(*flags, *machine, "--out_dir", str(folder))
    return read_run(folder)


def test_each_step_and_each_file_is_a_row_and_what_was_stopped_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compression, "run_in", in_this_process)
    monkeypatch.setattr(measure, "timed", lambda *_: [])
    times = {"float32": {"ms": 2.0}, "form": {"ms": 1.0}}
    monkeypatch.setattr(measure, "timed_files", lambda *_: [{"engine": "x", "batch": b, "where": "y", **times} for b in (1, 128)])
    run_program(*TINY_DATA, *LENET, "--epochs", "1", "--batch_size", "18", "--quiet", "--out_dir", "dense")
    # of so little data the values of Deep Compression are trained on one batch
    flags = ["dense", "--epochs", "1", "--threads", "1", "--deep_compression", "deep_compression(batches=1)"]
    flags += ["--records", "records.jsonl", "--table", "page.md", "--out", "steps"]
    compression.main(flags)
    records = [json.loads(line) for line in Path("records.jsonl").read_text().splitlines()]
    assert [(record["step"], record["form"]) for record in records] == [
        (step, form) for step in ("dense", "pruned", "factorised") for form in ("int8", "deep_compression")
    ]
    dense, pruned, factorised = records[::2]
    assert pruned["macs"] < 0.51 * dense["macs"]
    assert factorised["macs"] < 0.71 * pruned["macs"]
    summary = json.loads(Path("steps/factorised/summary.json").read_text())
    assert summary["left"]["macs"] == factorised["macs"]
    page = Path("page.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| dense") or line.startswith("| factorised")]
    assert [row[1] for row in rows] == 2 * ["float32", "8 bits", "Deep Compression"]
    assert rows[0][5] == "1.00"
    assert rows[3][5] == f"{dense['float_bytes'] / factorised['float_bytes']:.2f}"
    assert rows[4][4] == str(factorised["bytes"])
    assert [row[-1].strip(" |") for row in rows][2::3] == ["-", "-"]
    before = Path("records.jsonl").read_text()
    compression.main(flags)
    assert Path("records.jsonl").read_text() == before
    with pytest.raises(Refused, match="unknown factorisation 'tuker'"):
        compression.main([*flags, "--factorise", "tuker(macs=0.5)"])
