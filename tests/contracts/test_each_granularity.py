"""Each granularity trains and resumes at each gate. Shapes and counts are in tests/pruning."""

import pytest
from promises import trains_and_resumes

from settings.registry import GATES, GRANULARITIES

pytestmark = pytest.mark.core


@pytest.mark.parametrize("name", GRANULARITIES.entries)
def test_it_trains_and_resumes(tmp_path, monkeypatch, name):
    trains_and_resumes(tmp_path, monkeypatch, "--prune_type", name, "--prune_rate", "0.3")


@pytest.mark.parametrize("gate", [*GATES.entries, "output(joint='right')"])
def test_filters_train_and_resume_at_every_gate(tmp_path, monkeypatch, gate):
    trains_and_resumes(tmp_path, monkeypatch, "--prune_type", "structured", "--prune_rate", "0.3", "--prune_gate", gate)
