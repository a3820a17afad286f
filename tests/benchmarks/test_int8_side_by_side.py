"""This test compares networks in 8 bits with float32 at a tiny size, and goes on with it."""

import json
import re
import sys

import pytest
import torch
from conftest import ROOT, TINY_DATA, TwoBlocks, run_program

import models

sys.path.insert(0, str(ROOT))
from benchmarks import int8

# few layers, so that files are written soon
LENET = [*TINY_DATA, "--arch", "lenet5", "--image_size", "28", "--batch_size", "18", "--lr", "0.01"]


@pytest.mark.measures
def test_networks_and_runs_are_compared_and_go_on(tmp_path, capsys, monkeypatch):
    run_program(*LENET, "--epochs", "1", "--quiet", "--prune_type", "structured", "--out_dir", str(tmp_path / "run"))
    records, page = tmp_path / "records.jsonl", tmp_path / "page.md"
    flags = ["--records", str(records), "--table", str(page)]
    with monkeypatch.context() as patch:
        patch.setattr(models, "build", lambda *_, **__: TwoBlocks(classes=10))
        int8.main(["--networks", "resnet20", *flags])
    first = records.read_text()
    forms = ["int8(calibrate=1)", "int8(calibrate=1, train=True, batches=1)"]
    int8.main(["--networks", "resnet20", "--runs", str(tmp_path / "run"), "--forms", *forms, *flags])
    assert records.read_text().startswith(first)
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    assert [(line["network"], line["form"]) for line in lines] == [
        *(2 * [("resnet20", "int8(calibrate=1)")]),
        *((str(tmp_path / "run"), form) for form in forms),
    ]
    assert [("same" in line, line.get("images")) for line in lines] == [(False, None)] * 2 + [(True, 24)] * 2
    assert [line.get("rate") for line in lines] == [0, 0.5, None, None]
    for line in lines:
        assert line["float_bytes"] > line["bytes"] > 0 or line["network"] == "resnet20"  # which is all header here
        assert [row["batch"] for row in line["speed"]] == [1, 128]
    rows = re.findall(r"^\| (resnet20|/.*run) \| (.*) \|$", page.read_text(), re.MULTILINE)
    assert len(rows) == 4
    assert rows[0][1].endswith("- | - | -")
    assert rows[2][1].split(" | ")[-3:-1] == [f"{lines[2][name]:.2f}" for name in ("before", "after")]
    before = page.read_text()
    int8.main(["--networks", "resnet20", "--runs", str(tmp_path / "run"), "--forms", *forms, *flags])
    assert page.read_text() == before
    threads = torch.get_num_threads()
    try:
        with pytest.raises(SystemExit, match="was begun otherwise"):
            int8.main([*flags, "--threads", str(threads + 1)])
    finally:
        torch.set_num_threads(threads)
