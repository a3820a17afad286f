"""Each granularity trains and resumes. Gates are in test_each_gate.py, shapes and counts are in tests/pruning."""

import pytest
from promises import trains_and_resumes

from settings.registry import GRANULARITIES

pytestmark = pytest.mark.core


@pytest.mark.parametrize("name", GRANULARITIES.entries)
def test_it_trains_and_resumes(tmp_path, monkeypatch, name):
    trains_and_resumes(tmp_path, monkeypatch, "--prune_type", name, "--prune_rate", "0.3")
