"""A sample of what benchmarks/fuzz_files.py does: each change of a file is refused in one line, or changes nothing."""

import io
import random
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from benchmarks import fuzz_files
from benchmarks.fuzz_mutations import mutate


@pytest.fixture(scope="module")
def place():
    with fuzz_files.workplace():
        yield


@pytest.mark.parametrize("kind", fuzz_files.KINDS)
def test_a_damaged_file_is_refused_in_one_line_or_means_the_same(place, kind):
    wrong = []
    counts = fuzz_files.fuzz(kind, 40, 1, lambda line: line.startswith("another file") or wrong.append(line))
    assert wrong == []
    assert sum(counts.values()) == 40
    assert counts["refused"] >= 20


def test_what_goes_wrong_is_seen(place, monkeypatch):
    """A reader that ends in a traceback, one that waits, and one that takes what it gets."""

    def broken(argv):
        raise KeyError("joints")

    def waits(argv):
        signal.alarm(1)
        time.sleep(5)

    def takes_all(argv):
        print(len(Path("trial/summary.json").read_bytes()))

    for program, how in ((broken, "traceback"), (waits, "hang")):
        assert fuzz_files.outcome(fuzz_files.Reader("summary.json", "pruned", "json", ["read"], program))[0] == how
    monkeypatch.setattr(fuzz_files, "READERS", [fuzz_files.Reader("summary.json", "pruned", "json", ["read"], takes_all)])
    told = []
    assert fuzz_files.fuzz("summary.json", 40, 0, told.append)["silent change"] > 5
    assert any(line.startswith("silent change: summary.json for read pruned: cut after") for line in told)


def test_changes_are_the_same_for_a_seed_and_are_changes():
    buffer = io.BytesIO()
    torch.save({"format": 1, "a": [1, 2.5, "x", {"b": torch.arange(4.0)}]}, buffer)
    for content, kind in (
        (b'{"a": [1, 2.5, null, "x"]}', "json"),
        (b'{"a": 1}\n{"a": 2}\n', "jsonl"),
        (buffer.getvalue(), "torch"),
    ):
        first, second = ([mutate(content, kind, chance) for _ in range(50)] for chance in map(random.Random, (3, 3)))
        assert [change.words for change in first] == [change.words for change in second]
        assert sum(change.content != content for change in first) > 40


def test_the_command_counts(capsys):
    assert fuzz_files.main(["--kinds", "preset.json", "--mutations", "6"]) == 0
    out = capsys.readouterr().out
    cells = re.search(r"\| preset\.json \| (.*) \|", out)[1].split(" | ")
    assert sum(map(int, cells[:6])) == 6
    assert "most memory" in out
