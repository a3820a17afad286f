"""These tests hold the table of lottery tickets to the runs that it is made of."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY, run_program

sys.path.insert(0, str(ROOT))
from benchmarks import tickets
from settings.errors import Refused

SPARSE = [*TINY, "--epochs", "1", "--prune_type", "unstructured"]


def test_a_row_is_a_name_over_its_seeds(tmp_path, capsys):
    """Cells of one seed are the runs' own figures, of two the mean; a run that has not ended has none.

    Of one that cuts nothing all weights are left.
    """
    for seed in ("0", "1"):
        ways = {
            "weights": ["--procedure", "rounds(n=1, fraction=0.9)"],
            "SNIP_0.9": ["--prune_phase", "init", "--prune_rate", "0.9"],
        }
        for name, flags in ways.items():
            run_program(*SPARSE, *flags, "--seed", seed, "--out_dir", str(tmp_path / f"{name}_{seed}"))
    run_program(*TINY, "--epochs", "1", "--out_dir", str(tmp_path / "dense_0"))
    shutil.copytree(tmp_path / "weights_0", tmp_path / "begun_0")
    (tmp_path / "begun_0" / "summary.json").unlink()
    capsys.readouterr()
    assert tickets.main([str(tmp_path), "--published"]) == 0
    said = capsys.readouterr().out
    assert "begun" not in said
    assert "| run | seeds | 100.0 % | 10.0 % |" in said
    both = [json.loads(Path(tmp_path, f"weights_{seed}", "summary.json").read_text()) for seed in (0, 1)]
    first, second = ([record["test"] for record in run["rounds"]] for run in both)
    means = [f"{(one + other) / 2:.2f} ±" for one, other in zip(first, second, strict=True)]
    (line,) = (line for line in said.splitlines() if line.startswith("| weights |"))
    assert all(mean in line for mean in means)
    (line,) = (line for line in said.splitlines() if line.startswith("| SNIP_0.9 |"))
    assert line.startswith("| SNIP_0.9 | 2 | - | ")
    (line,) = (line for line in said.splitlines() if line.startswith("| dense |"))
    dense = json.loads(Path(tmp_path, "dense_0", "summary.json").read_text())["test"]["top1"]
    assert line == f"| dense | 1 | {dense:.2f} | - |"
    assert "| learning rate rewound | 92.29 | 92.12 | 91.89 | 91.47 | 91.01 |" in said


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(Refused, match="no run in"):
        tickets.main([str(tmp_path)])
    with pytest.raises(Refused, match="no folder at"):
        tickets.main([str(tmp_path / "nothing")])
