"""This test reads every committed record: each is whole, of a run that has ended, and names no folder of another machine."""

from pathlib import Path

import pytest
from conftest import ROOT

from runs.records import read_run

RUNS = sorted(path.parent for path in (ROOT / "benchmarks" / "runs").rglob("config.json"))


@pytest.mark.parametrize("folder", RUNS, ids=[str(path.relative_to(ROOT / "benchmarks" / "runs")) for path in RUNS])
def test_a_committed_record_is_whole(folder):
    run = read_run(folder)
    assert run.notes == []
    assert run.summary is not None
    assert run.rows
    for path in ("out_dir", "init", "data_dir", "teacher"):
        assert not Path(run.config["settings"].get(path) or ".").is_absolute()


def test_there_are_records():
    assert len(RUNS) > 50
