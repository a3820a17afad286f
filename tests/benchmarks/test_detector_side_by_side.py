"""This test prunes a tiny detector in phases and at once, and looks at the table and at the sheet of pictures."""

import json
import sys
from pathlib import Path

import pytest
from boxes import DETECTOR, voc_folder
from conftest import ROOT, TINY, run_program
from PIL import Image

sys.path.insert(0, str(ROOT))
from benchmarks import detector
from deploy import measure
from runs.records import read_run
from settings.errors import Refused


def in_this_process(folder, flags, machine):
    """As `run_in`, for a run that has not begun."""
    if not (folder / "summary.json").exists():
        run_program(*flags, *machine, "--amp", "off", "--out_dir", str(folder))
    return read_run(folder)


def test_phases_stand_beside_one_cut_at_the_same_macs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(detector, "run_in", in_this_process)
    times = {name: {"ms": ms, "middle_ms": [ms, ms], "rounds": 50} for name, ms in (("dense", 4.0), ("compact", 2.0))}
    monkeypatch.setattr(measure, "timed", lambda *_: [{"engine": "x", "batch": b, "where": "y", **times} for b in (1, 8)])
    voc_folder(tmp_path / "scans")
    run_program(*DETECTOR, "--data_dir", "scans", "--epochs", "1", "--lr", "0.003", "--quiet", "--out_dir", "dense")
    flags = [
        "dense",
        "--epochs",
        "4",
        "--phases",
        "2",
        "--pictures",
        "2",
        "--out",
        "out",
        "--table",
        "page.md",
        "--sheet",
        "sheet.png",
    ]
    flags += ["--prune_imp", "zero_fraction(counts='multilayer', threshold=0.05, own=0.3, own_at_least=0.2)"]
    detector.main(flags)
    lines = [line.strip("| ").split(" | ") for line in Path("page.md").read_text().splitlines() if line.startswith("| ")]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]
    assert [row["network"] for row in rows] == ["dense", "multi-layer, phase 1", "multi-layer, phase 2", "L1 at once"]
    of = {name: json.loads(Path(f"{name}/summary.json").read_text()) for name in ("dense", "out/phases", "out/L1")}
    left = [float(row["MACs left %"]) for row in rows]
    assert left[0] == 100 > left[1] >= left[2] >= left[3] > 0.8 * left[2]  # no more than the phases leave, and little less
    for row, name in zip((rows[0], *rows[2:]), of, strict=True):
        assert row["test AP50"] == f"{of[name]['test']['AP50']:.2f}"
        assert row["file, MB"] == f"{of[name]['file']['bytes'] / 1e6:.3f}"
    selections = of["out/phases"]["selections"]
    assert [row["behind it"] for row in rows[1:3]] == [f"{record['after']:.2f}" for record in selections]
    assert [row["ms a picture"] for row in rows] == ["-", "-", "2.00 (dense 4.00)", "2.00 (dense 4.00)"]
    with Image.open("sheet.png") as sheet:
        assert min(sheet.size) > 300

    # what has ended is not done again; a folder of other runs is not taken for these; a dense run of boxes is needed
    monkeypatch.setattr(sys.modules[__name__], "run_program", None)
    before = Path("page.md").read_text()
    detector.main(flags)
    assert Path("page.md").read_text() == before
    for argv, message in (
        ([*flags, "--lr", "0.1"], r"'out/phases' has --lr 0\.001, not 0\.1: name another --out"),
        ([*flags, "--odecay", "0.5"], r"'out/phases' has --odecay 0\.0001, not 0\.5: name another --out"),
        ([*flags, "--phases", "1"], r"'out/phases' has --procedure multilayer\(phases=2\), not multilayer\(phases=1\)"),
        ([*flags, "--phases", "0"], "--phases is at least 1"),
        ([*flags, "--pictures", "0"], "--pictures is at least 1"),
        ([*flags, "--sheet", "no/sheet.png"], "no folder at 'no'"),
        (["out/L1", *flags[1:]], "no dense run on pictures with boxes"),
        ([*flags, "--prune_imp", "zero"], "zero"),
    ):
        with pytest.raises(Refused, match=message):
            detector.main(argv)
    detector.main(["dense/", *flags[1:]])
    config = json.loads(Path("dense/config.json").read_text())
    Path("dense/config.json").write_text(json.dumps(config | {"settings": config["settings"] | {"val_size": 0.0}}))
    with pytest.raises(Refused, match="holds no images out"):
        detector.main(flags)


def test_a_run_on_whole_pictures_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_program(*TINY, "--epochs", "1", "--out_dir", "digits")
    with pytest.raises(Refused, match="no dense run on pictures with boxes"):
        detector.main(["digits"])
