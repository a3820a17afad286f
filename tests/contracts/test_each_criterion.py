"""Each criterion trains and resumes. That scoring changes nothing, and that its options count, is in tests/pruning."""

import pytest
from promises import PRUNED, trains_and_resumes

from settings.registry import CRITERIA


@pytest.mark.parametrize("name", CRITERIA.entries)
def test_it_trains_and_resumes(tmp_path, monkeypatch, name):
    trains_and_resumes(tmp_path, monkeypatch, *PRUNED, "--prune_imp", name, "--prune_until", "1.0")
