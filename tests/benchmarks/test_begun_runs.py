"""These tests hold that no comparison measures a run that is still going on, whose checkpoint is not its result."""

import importlib
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY, run_program

sys.path.insert(0, str(ROOT))
from benchmarks.int8 import last_network
from settings.errors import Refused


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run whose checkpoint is there, and whose summary is not yet."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    run_program(*TINY, "--epochs", "1", "--quiet", "--out_dir", str(folder))
    (folder / "summary.json").unlink()
    return folder


@pytest.mark.parametrize("script", ["compression", "criteria", "hessian", "images", "reconstruction", "rethinking"])
def test_a_run_that_goes_on_is_refused(script, begun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match="has not ended"):
        importlib.import_module(f"benchmarks.{script}").main([str(begun)])
    assert not list(Path().rglob("*.json*"))


def test_its_network_is_not_put_into_8_bits(begun):
    with pytest.raises(Refused, match="has not ended"):
        last_network(begun)
