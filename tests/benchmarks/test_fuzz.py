"""Samples of the fuzzers in benchmarks/: odd files, command lines and folders are refused in one line, or taken as meant."""

import io
import random
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import modeling
from settings.arguments import parse
from tasks import listing

sys.path.insert(0, str(ROOT))
from benchmarks import fuzz_commands, fuzz_files, fuzz_folders, fuzz_oddities
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


def test_an_odd_command_line_is_refused_in_one_line_or_carried_out_as_typed(place):
    wrong = []
    counts = sum(fuzz_commands.fuzz(40, 1, wrong.append).values(), Counter())
    assert wrong == []
    assert counts["refused"] >= 15
    assert counts["accepted"] >= 5


def test_a_flag_that_is_not_taken_as_typed_is_seen(place, monkeypatch):
    """A parser that forgets one flag, and a run that begins with another value than was parsed."""
    line = [*fuzz_files.TINY, "--epochs", "2", "--lr=0.3", "--no_compile"]
    typed = fuzz_commands.Typed()
    assert fuzz_commands.changed(line, parse(line)) == []
    assert fuzz_commands.changed(line, parse(line).replace(lr=0.2, compile=None)) == ["lr", "compile"]
    monkeypatch.setattr(modeling, "carry_out", typed.instead_of_training)
    assert fuzz_commands.tried(line, typed)[0] == "accepted"
    assert len(typed.seen) == 2
    start = modeling.start
    monkeypatch.setattr(modeling, "start", lambda settings, **machine: start(settings.replace(lr=0.2), **machine))
    assert fuzz_commands.tried(line, typed) == ("silent change", "lr 0.2")


def test_an_odd_folder_is_refused_in_one_line_or_counted_as_it_is():
    wrong = []
    counts = fuzz_folders.fuzz(30, 1, wrong.append)
    assert wrong == []
    assert counts["refused"] >= 8
    assert counts["read"] >= 8


def test_a_folder_that_is_read_otherwise_is_seen(monkeypatch):
    """By a reader that knows other types of pictures, and by one that leaves some out."""
    monkeypatch.setattr(fuzz_folders, "ODDITIES", [fuzz_oddities.hidden])
    monkeypatch.setattr(listing, "suffixes", lambda: frozenset([".bmp"]))
    assert {*fuzz_folders.fuzz(2, 0, str)} == {"wrongly refused"}
    monkeypatch.undo()
    monkeypatch.setattr(fuzz_folders, "ODDITIES", [fuzz_oddities.other_files])
    monkeypatch.setattr(fuzz_folders, "PICTURES", {".png", ".txt"})
    told = []
    assert {*fuzz_folders.fuzz(2, 0, told.append)} == {"other counts"}
    assert "not {" in told[0]
