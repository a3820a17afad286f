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
    asked = [(position, until, due) for until in (0, 7, 16) for position in range(16) for due in (True, False)]
    with unchanged():
        first, second = ([phase(*one) for one in asked] for _ in range(2))
    assert first == second
    assert {type(word) for answer in first for word in answer} == {bool}
