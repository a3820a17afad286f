"""This test runs the comparison of fine-tuning with training from scratch at a tiny size, stops it, and goes on with it."""

import json
import re
import shutil
import sys
from types import SimpleNamespace

import programs
import pytest
from conftest import ROOT, TINY, run_program

sys.path.insert(0, str(ROOT))
from benchmarks import records as results
from benchmarks import rethinking
from settings.errors import Refused

PLACE = ("macs", "method", "lr", "seed")


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """The folder of a dense run."""
    folder = tmp_path_factory.mktemp("rethinking") / "dense"
    run_program(*TINY, "--epochs", "1", "--out_dir", str(folder))
    return str(folder)


@pytest.fixture
def begun(monkeypatch):
    """The flags of each run that the benchmark starts."""
    commands = []

    def run(argv, **_):
        commands.append(argv[2:])
        return programs.run(argv)

    monkeypatch.setattr(results, "subprocess", SimpleNamespace(run=run))
    return commands


def test_pruned_networks_are_compared_with_fresh_ones_and_go_on(tmp_path, capsys, dense, begun):
    records, table = tmp_path / "records.jsonl", tmp_path / "table.md"
    flags = [dense, "--macs", "0.5", "--epochs", "1", "--threads", "1", "--out", str(tmp_path / "out")]
    flags += ["--records", str(records), "--table", str(table)]
    rethinking.main([*flags, "--lrs", "1e-9", "0.05", "--seeds", "1"])
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    assert len(begun) == len(lines) == 9
    assert all(line["macs left"] == lines[0]["macs left"] and 0.4 < line["macs left"] <= 0.5 for line in lines)
    epochs = {line["method"]: line["epochs"] for line in lines}
    assert epochs == {"fine-tuning": 1, "Scratch-E": 1, "Scratch-B": 2}
    rows = re.findall(r"^\| (fine-tuning|Scratch-.) \| (.*) \|$", table.read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == rethinking.METHODS
    for name, cells in rows:
        *_, number, rate, held_out, test, seeds = cells.split(" | ")
        of = [line for line in lines if line["method"] == name]
        best = max((line for line in of if line["seed"] == 0), key=lambda line: line["held out"])
        (mine,) = (line for line in of if line["seed"] == 1)
        assert mine["lr"] == best["lr"] == float(rate)
        assert (int(number.split(".")[0]), seeds) == (epochs[name], "1")
        assert [float(held_out), float(test)] == [round(mine["held out"], 2), round(mine["test"], 2)]

    # the last run is stopped in its second epoch: it goes on, and ends as it did; nothing else is done again
    folder = rethinking.folder_of(SimpleNamespace(out=tmp_path / "out"), **{name: lines[-1][name] for name in PLACE})
    (folder / "summary.json").unlink()
    (folder / "previous.pt").replace(folder / "checkpoint.pt")
    *kept, last = records.read_text().splitlines(keepends=True)
    records.write_text("".join(kept) + last[:30] + "\n")
    begun.clear()
    rethinking.main([*flags, "--lrs", "1e-9", "0.05", "--seeds", "1"])
    assert [command[:2] for command in begun] == [["--resume", str(folder)]]
    again = json.loads(records.read_text().splitlines()[-1])
    assert again | {"seconds": None} == lines[-1] | {"seconds": None}
    assert json.loads((folder / "config.json").read_text())["resumed"][0]["from_epoch"] == epochs["Scratch-B"] - 1

    with pytest.raises(Refused, match="has --epochs 1, not 3: name another --out"):
        rethinking.main([*flags, "--epochs", "3", "--lrs", "0.05"])
    with pytest.raises(Refused, match=r"has --init .*dense, not .*copy: name another --out"):
        rethinking.main([str(shutil.copytree(dense, tmp_path / "copy")), *flags[1:], "--lrs", "0.05"])
    with pytest.raises(SystemExit, match="was begun otherwise"):
        rethinking.main([*flags, "--epochs", "3", "--lrs", "0.05", "--out", str(tmp_path / "other")])
    assert len(begun) == 1


def test_held_out_images_choose_the_learning_rate_of_each_method_and_amount(tmp_path, capsys, monkeypatch, dense):
    best = {(0.5, "fine-tuning"): 0.01, (0.5, "Scratch-E"): 0.05, (0.5, "Scratch-B"): 0.1}
    best |= {(0.3, "fine-tuning"): 0.05, (0.3, "Scratch-E"): 0.1, (0.3, "Scratch-B"): 0.01}
    places = []

    def carry_out(_, place):
        places.append(tuple(place.values()))
        good = best[place["macs"], place["method"]] == place["lr"]
        values = {"held out": 70 + place["seed"], "test": 60 + 2 * place["seed"]} if good else {"held out": 50, "test": 90}
        return values | {"macs left": place["macs"], "parameters left": 0.5, "epochs": 2, "seconds": 1}

    monkeypatch.setattr(rethinking, "carry_out", carry_out)
    flags = ["--records", str(tmp_path / "records"), "--table", str(tmp_path / "table.md"), "--out", str(tmp_path / "out")]
    rethinking.main([dense, *flags, "--lrs", "0.05", "0.01", "0.1", "--seeds", "0", "1"])
    lines = capsys.readouterr().out.splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {(float(macs) / 100, name): float(rate) for name, macs, _, _, rate, *_ in rows} == best
    assert all(row[-3:] == ["70.50 ± 0.71", "61 ± 1.41", "2"] for row in rows)
    assert len(places) == len(set(places)) == 6 * (3 + 1)
    assert {place[2:] for place in places if place[3] == 1 and place[:2] == (0.3, "Scratch-E")} == {(0.1, 1)}


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", ('"val_size": 0.1', '"val_size": 0.0'), "holds no images out"),
        ("summary.json", None, "has not ended"),
    ],
)
def test_a_run_that_cannot_be_compared_is_refused(tmp_path, dense, begun, file, change, message):
    other = shutil.copytree(dense, tmp_path / "dense")
    text = (other / file).read_text()
    (other / file).unlink()
    if change:
        assert change[0] in text
        (other / file).write_text(text.replace(*change))
    with pytest.raises(Refused, match=message):
        rethinking.main([str(other), "--out", str(tmp_path / "out")])
    assert begun == []


def test_a_run_that_fails_ends_the_comparison_with_its_line(tmp_path, monkeypatch, dense):
    ended = SimpleNamespace(returncode=2, stderr="a note\nmodeling.py: error: it was so\n")
    monkeypatch.setattr(results, "subprocess", SimpleNamespace(run=lambda *_, **__: ended))
    with pytest.raises(Refused, match=r"the run in '.*0.5-fine-tuning-lr0.01-seed0': modeling.py: error: it was so"):
        rethinking.main([dense, "--out", str(tmp_path / "out"), "--records", str(tmp_path / "records")])
