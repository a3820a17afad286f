"""Each schedule of the learning rate trains, resumes and answers from its arguments alone."""

import pytest
from promises import trains_and_resumes, unchanged

from settings.registry import LEARNING_RATES

pytestmark = pytest.mark.core

# two values of each option that must give two results
OPTION_VALUES = {"drops": ((0.5, 0.75), (0.2,)), "factor": (0.1, 0.5)}


@pytest.mark.parametrize("name", LEARNING_RATES.entries)
def test_it_trains_and_resumes(tmp_path, monkeypatch, name):
    trains_and_resumes(tmp_path, monkeypatch, "--lr_schedule", name)


def curve(text: str) -> list[float]:
    schedule = LEARNING_RATES.get(text)
    return [schedule(number / 20) for number in range(21)]


@pytest.mark.parametrize("name", LEARNING_RATES.entries)
def test_it_answers_from_its_arguments_alone(name):
    with unchanged():
        first, second = curve(name), curve(name)
    assert first == second
    assert first[0] > 0
    assert all(0 <= factor <= 1 for factor in first)


@pytest.mark.parametrize(("name", "option"), [(n, o) for n, entry in LEARNING_RATES.entries.items() for o in entry.options])
def test_every_option_has_an_effect(name, option):
    first, second = (curve(f"{name}({option}={value})") for value in OPTION_VALUES[option])
    assert first != second
