"""Each phase trains and resumes, and answers from its arguments alone. What its options do is in tests/pruning."""

import pytest
from promises import PRUNED, trains_and_resumes, unchanged

from settings.registry import PHASES

pytestmark = pytest.mark.core


@pytest.mark.parametrize("name", PHASES.entries)
def test_it_trains_and_resumes(tmp_path, monkeypatch, name):
    trains_and_resumes(tmp_path, monkeypatch, *PRUNED, "--prune_phase", name)


@pytest.mark.parametrize("name", PHASES.entries)
def test_it_answers_from_its_arguments_alone(name):
    phase = PHASES.get(name)
    asked = [(until, due) for until in (1, 7, 16) for due in (range(16), range(3, 16, 4), range(0))]
    with unchanged():
        first, second = ([phase(*one) for one in asked] for _ in range(2))
    for (until, _), (positions, moves_until), (again, _) in zip(asked, first, second, strict=True):
        assert list(positions) == list(again) == sorted(positions)
        assert all(0 <= position <= until for position in positions)
        assert 0 <= moves_until <= until
