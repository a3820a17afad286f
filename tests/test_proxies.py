"""Families of untrained networks are scored, ranked beside trained runs, and gone on with."""

import json
import subprocess
import sys
from itertools import combinations
from types import SimpleNamespace

import programs
import pytest
from conftest import ROOT, TINY_DATA

import proxies
from runs.ranks import rank_correlations, vote
from settings.errors import Refused

TINY = [*TINY_DATA, "--batch_size", "18"]
FAMILY = ["--family", "resnet20(widen={0.25,0.5,0.125})"]


@pytest.mark.core
def test_ranks_have_a_sign_and_ties_share_theirs():
    assert rank_correlations([1, 2, 3], [30, 20, 10]) == {"spearman": pytest.approx(-1), "kendall": pytest.approx(-1), "n": 3}
    # ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: Pearson's of these is 4.5 / sqrt(4.5 * 5); tau-b is 5 / sqrt(5 * 6)
    found = rank_correlations([1e-30, 5, 5, 1e30], [10, 30, 20, 40])
    assert found == {"spearman": pytest.approx(4.5 / 22.5**0.5), "kendall": pytest.approx(5 / 30**0.5), "n": 4}
    assert rank_correlations([1, None, 3, 4], [1, 2, None, 2])["n"] == 2
    assert rank_correlations([1, 1, 1], [1, 2, 3]) == {"spearman": None, "kendall": None, "n": 3}
    assert rank_correlations([], []) == {"spearman": None, "kendall": None, "n": 0}


@pytest.mark.core
def test_the_majority_names_the_better_of_two():
    # pairs (0, 1), (0, 2), (1, 2): right by two of three, right by all, wrong by two of three
    assert vote([[1, 2, 3], [1, 2, 1.5], [2, 1, 0.5]], [10, 20, 30]) == ((1 + 0.5 * 0 + 0 + 1) / 3, 3)
    assert vote([[1, 2], [2, 1]], [10, 20]) == (0.5, 1)  # even
    assert vote([[1, 2, 3]], [10, 10, None]) == (None, 0)


@pytest.mark.core
def test_the_grammar_of_families():
    assert proxies.members(["resnet{20,32}(widen={0.5,1.0})", "lenet5"]) == [
        "resnet20(widen=0.5)", "resnet20(widen=1.0)", "resnet32(widen=0.5)", "resnet32(widen=1.0)", "lenet5"
    ]  # fmt: skip
    assert proxies.members(["resnet20", "resnet20(widen=1.0)"]) == ["resnet20"]
    assert len(proxies.members(proxies.FAMILY)) >= 24


@pytest.mark.core
@pytest.mark.parametrize(("flags", "words"), [
    (["--family", "resnet21"], "unknown network 'resnet21'"),
    (["--family", "resnet20(widen=-1.0)"], "above 0"),
    (["--images", "1"], "--images is at least 2"),
    (["--runs", "nowhere"], "--runs: no folder 'nowhere'"),
    (["--arch", "vgg16"], "--arch has no effect here"),
    (["--no_such_flag"], "unknown argument"),
    (["--epochs", "0"], "--epochs"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match=words):
        proxies.main(["--out_dir", "family", *TINY, *flags])
    assert not (tmp_path / "family").exists()


@pytest.mark.core
def test_bad_input_is_one_line(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "proxies.py", "--images", "x"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("proxies.py: error: ")


def test_a_family_is_scored_and_gone_on_with(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = [*FAMILY, "--out_dir", "family", "--images", "12", *TINY]
    proxies.main(command)
    page = capsys.readouterr().out
    assert page == (tmp_path / "family" / "proxies.md").read_text()
    assert "No trained run is known" in page
    assert (tmp_path / "family" / "proxies.png").stat().st_size > 5000
    lines = (tmp_path / "family" / "scores.jsonl").read_bytes().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines]
    assert [row["arch"] for row in rows] == ["resnet20(widen=0.25)", "resnet20(widen=0.5)", "resnet20(widen=0.125)"]
    sizes = [row["parameters"] for row in rows]
    assert sizes[2] < sizes[0] < sizes[1]

    # killed while the second row was written: the first is kept, and the others have the same scores
    (tmp_path / "family" / "scores.jsonl").write_bytes(lines[0] + lines[1][:20])
    scored = []
    score = proxies.score
    monkeypatch.setattr(
        proxies, "score", lambda settings, images: scored.append(settings.network.arch) or score(settings, images)
    )
    proxies.main(command)
    assert capsys.readouterr().out == page
    assert scored == [row["arch"] for row in rows[1:]]
    again = [json.loads(line) for line in (tmp_path / "family" / "scores.jsonl").read_bytes().splitlines()]
    assert [row["scores"] for row in again] == [row["scores"] for row in rows]

    for flags, words in ((["--images", "10"], "with images 12, not 10"), (["--seed", "5"], "with seed 0, not 5")):
        with pytest.raises(Refused, match=words):
            proxies.main([*command, *flags])
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(Refused, match="'used' is in use"):
        proxies.main([*FAMILY, "--out_dir", "used", *TINY])


def test_networks_are_trained_and_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    started = []

    def run(argv, **_):
        started.append([str(word) for word in argv[2:]])
        program = programs.Program(argv[1:])
        program.communicate()
        return SimpleNamespace(returncode=program.returncode)

    monkeypatch.setattr(proxies, "subprocess", SimpleNamespace(run=run, DEVNULL=None))
    command = [*FAMILY, "--out_dir", "family", "--images", "12", *TINY]
    proxies.main([*command, "--epochs", "1"])
    page = capsys.readouterr().out
    assert [words[:2] for words in started] == [["--arch", name] for name in proxies.members(FAMILY[1:])]
    for name in (*proxies.PROXIES.entries, "parameters", "macs"):
        assert f"| {name} | " in page
    runs = sorted((tmp_path / "family" / "runs").iterdir())
    tested = [json.loads((run / "summary.json").read_text())["test"]["top1"] for run in runs]
    pairs = sum(one != other for one, other in combinations(tested, 2))
    assert (f" of {pairs} pairs." in page) == (pairs > 0)
    for accuracy in tested:
        assert f" {accuracy:.2f} |" in page
    # the same runs, named: those of other networks are passed over, and it is said
    proxies.main(
        ["--family", "resnet20(widen={0.25,0.5})", "--out_dir", "other", "--images", "12", *TINY, "--runs", *map(str, runs)]
    )
    said = capsys.readouterr()
    assert "is of no network of the family; passed over" in said.err
    assert said.out.count(" 2 |") == 9
    started.clear()
    proxies.main([*command, "--epochs", "2"])  # goes on with the runs of one epoch
    assert [words[0] for words in started] == ["--resume"] * 3
    assert {len((run / "metrics.jsonl").read_text().splitlines()) for run in runs} == {2}
