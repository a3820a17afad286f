"""These tests run the comparisons of criteria at a tiny size."""

import json
import re
import sys
from types import SimpleNamespace

import programs
from conftest import ROOT, TINY, TINY_DATA, run_program

sys.path.insert(0, str(ROOT))
from benchmarks import criteria, images


def test_criteria_are_compared_and_go_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(criteria, "subprocess", SimpleNamespace(run=programs.run))
    run_program(*TINY, "--out_dir", str(tmp_path / "dense"))
    capsys.readouterr()
    data = ["--dataset", "folder", "--data_dir", TINY_DATA[3], "--image_size", "16", "--batch_size", "18", "--threads", "1"]
    flags = [str(tmp_path / "dense"), *data, "--criteria", "L1", "APoZ", "--steps", "2", "--out", str(tmp_path / "out")]
    flags += ["--plot", str(tmp_path / "criteria.png")]
    criteria.main(flags)
    table = capsys.readouterr().out
    rows = re.findall(r"^\| (L1|APoZ) \| (.*) \|$", table, re.MULTILINE)
    assert [name for name, _ in rows] == ["L1", "APoZ"]
    for _, cells in rows:
        *accuracies, rate, parameters, macs, seconds, _ = (float(cell) for cell in cells.split(" | "))
        assert all(0 <= accuracy <= 100 for accuracy in accuracies)
        assert rate in (0.01, 0.05)
        assert 0 < parameters < 100
        assert 40 < macs <= 50
        assert seconds >= 0
    assert (tmp_path / "criteria.png").stat().st_size > 5000
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == 7
    result = json.loads((tmp_path / "out" / "L1-0.01.json").read_text())
    assert result["kept"]["stem"] <= 16
    stamps = [file.stat().st_mtime_ns for file in files]
    criteria.main(flags)
    assert capsys.readouterr().out == table
    assert [file.stat().st_mtime_ns for file in files] == stamps

    images.main([str(tmp_path / "dense"), "--images", "8", "--criteria", "APoZ", "random", *TINY_DATA])
    rows = dict(re.findall(r"^\| (APoZ|random) \| (.*) \|$", capsys.readouterr().out, re.MULTILINE))
    assert rows["random"] == "1.000 | 1.000"  # it reads none
    assert 0 < float(rows["APoZ"].split(" | ")[0]) < 1
