"""This test makes the page of Deep Compression from tiny runs, goes on with it, and counts what it tells anew."""

import json
import re
import shutil
import sys

import pytest
import torch
from conftest import ROOT, TINY, run_program

import models
from settings.errors import Refused

sys.path.insert(0, str(ROOT))
from benchmarks import deep_compression


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a dense run, and two of it that were pruned and stored."""
    folder = tmp_path_factory.mktemp("deep")
    one = [*TINY, "--epochs", "1", "--quiet"]
    run_program(*one, "--out_dir", str(folder / "dense"))
    form = "deep_compression(conv_bits=3, index_bits=2, batches=1)"
    for seed, density in (("0", "0.9"), ("1", "0.8")):
        flags = ["--init", str(folder / "dense"), "--prune_type", "unstructured", "--prune_phase", "init", "--seed", seed]
        run_program(*one, *flags, "--prune_rate", density, "--form", form, "--out_dir", str(folder / seed))
    return folder


def stored_entries(weight: torch.Tensor, largest: int) -> int:
    """How many entries a weight takes: those that are not 0, and one more each time that the gap before one is too large."""
    entries = gap = 0
    for value in weight.flatten().tolist():
        gap += 1
        if value:
            entries, gap = entries + 1 + (gap - 1) // largest, 0
    return entries


def test_what_the_files_hold(tmp_path, runs, capsys):
    records, page = tmp_path / "records.jsonl", tmp_path / "page.md"
    flags = ["--records", str(records), "--table", str(page)]
    deep_compression.main([str(runs / "0"), *flags])
    first = records.read_text()
    deep_compression.main([str(runs / "0"), str(runs / "1"), *flags, "--lrs", "0", "0.1", "1e30", "--bits", "2", "1"])
    assert records.read_text().startswith(first)
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    files, grid = ([line for line in lines if name in line] for name in ("form", "lr"))
    assert [line["run"] for line in files] == ["0", "1"]
    assert [(line["run"], line["conv_bits"], line["linear_bits"], line["lr"]) for line in grid] == [
        (run, 2, 1, lr) for run in ("0", "1") for lr in (0, 0.1, 1e30)
    ]
    assert grid[0]["rise"] != grid[1]["rise"]
    assert (grid[2]["rise"], grid[2]["held out"]["stored"]) == (None, None)  # at such a rate nothing is found
    dense = json.loads((runs / "dense" / "summary.json").read_text())
    for line, left in zip(files, (0.1, 0.2), strict=True):
        summary = json.loads((runs / line["run"] / "summary.json").read_text())
        told = summary["form"]
        assert line["accuracy"] == {"dense": dense["test"]["top1"], "pruned": told["before"], "stored": told["after"]}
        assert sum(line["bits"].values()) == 8 * line["bytes"] == 8 * (runs / line["run"] / "deep_compression.pt").stat().st_size
        assert deep_compression.share(line["layers"].values()) == pytest.approx(left, abs=1e-4)
        network, fixed = models.load(runs / line["run"] / "deep_compression.pt"), 0
        for name, unit in network.all_units.items():
            layer = line["layers"][name]
            assert (layer["weights"], layer["left"]) == (unit.weight.numel(), int((unit.weight != 0).sum()))
            assert layer["stored"] == stored_entries(unit.weight, 4)
            fixed += layer["stored"] * (2 + (5 if unit.is_linear else 3))
        rest = sum(told["bits"][part] for part in ("codebook", "biases", "batch norm", "header"))
        assert 8 * line["bytes without Huffman"] == fixed + rest
    text = page.read_text()
    rows = [row.split(" | ") for row in re.findall(r"^\| (.*(?:deep_compression|published).*) \|$", text, re.MULTILINE)]
    assert [row[0] for row in rows] == ["resnet20, folder", *deep_compression.PUBLISHED]
    assert rows[0][2] == "15.00 ± 7.07"
    assert rows[0][-1] == "2"
    assert rows[1][-3:-1] == ["32", "40"]
    assert text.count("resnet20, folder") == 1 + 1 + len(files[0]["layers"]) + 3
    before = page.read_text()
    deep_compression.main([str(runs / "0"), *flags])
    assert page.read_text() == before


def test_a_run_without_this_form_is_refused(runs, tmp_path):
    with pytest.raises(Refused, match=r"dense' has no deep_compression: go on with it by modeling.py --resume .*dense --form"):
        deep_compression.main([str(runs / "dense")])
    shutil.copytree(runs / "0", tmp_path / "other" / "0")
    with pytest.raises(Refused, match="two of the folders have one name"):
        deep_compression.main([str(runs / "0"), str(tmp_path / "other" / "0")])


def test_the_dense_network_is_found_beside_a_run_that_was_moved(runs, tmp_path):
    for name in ("0", "dense"):
        shutil.copytree(runs / name, tmp_path / name)
    config = json.loads((tmp_path / "0" / "config.json").read_text())
    config["settings"]["init"] = "elsewhere/dense"
    (tmp_path / "0" / "config.json").write_text(json.dumps(config))
    there = json.loads((runs / "dense" / "summary.json").read_text())["test"]["top1"]
    assert deep_compression.measure(tmp_path / "0")["accuracy"]["dense"] == there
    shutil.rmtree(tmp_path / "dense")
    assert deep_compression.measure(tmp_path / "0")["accuracy"]["dense"] is None
