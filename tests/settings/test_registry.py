"""Names on the command line: discovery, options, suggestions, refusals."""

import pytest

from settings.registry import Registry, parse_call

SOURCE = '''
from typing import Literal
GRANULARITIES = ("structured",)
def size(x, *, power: float = 2.0, mode: Literal["sum", "mean"] = "sum", count: int = 3):
    """Some size (Somebody, 2020)."""
    return x ** power
def lambda_(x):
    """A Python keyword as a name."""
def _helper(x): ...
'''


@pytest.fixture
def registry(tmp_path):
    (tmp_path / "sizes.py").write_text(SOURCE)
    return Registry("measure", "*.py", root=tmp_path)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("L1", ("L1", {})),
        ("L1()", ("L1", {})),
        (" L1(reduce='mean') ", ("L1", {"reduce": "mean"})),
        ("global(normalise='none', floor=0)", ("global", {"normalise": "none", "floor": 0})),
        ("step(drops=(0.3, 0.6), factor=0.2)", ("step", {"drops": (0.3, 0.6), "factor": 0.2})),
    ],
)
def test_a_choice_is_read(text, wanted):
    assert parse_call(text) == wanted


@pytest.mark.parametrize(
    "text", ["", "L1(", "L1('mean')", "L1(reduce=print())", "L1(**{})", "a b", "L1(x=1)(y=2)", "L1;L2", "L1)(("]
)
def test_anything_but_plain_values_is_refused(text):
    with pytest.raises(ValueError, match="cannot read"):
        parse_call(text)


def test_public_functions_are_found_without_running_their_file(registry):
    assert sorted(registry.entries) == ["lambda", "size"]
    assert registry.entries["size"].summary == "Some size (Somebody, 2020)."
    assert registry.constants("size") == {"GRANULARITIES": ("structured",)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sise", "did you mean 'size'"),
        ("SIZE", "did you mean 'size'"),
        ("zzz", "choose from lambda, size"),
        ("size(powr=1)", "did you mean 'power'"),
        ("lambda(x=1)", "it has none"),
        ("size(mode='max')", "'sum', 'mean'"),
        ("size(power='2')", "float"),
        ("size(power=-1)", "at least 0"),
        ("size(power=1e999)", "at least 0"),
        ("size(count=2.5)", "int"),
        ("size(count=True)", "int"),
    ],
)
def test_a_wrong_choice_is_refused_with_the_legal_ones(registry, text, words):
    with pytest.raises(ValueError, match="measure") as caught:
        registry.check(text)
    assert words in str(caught.value)


def test_two_files_may_not_define_the_same_name(tmp_path):
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("def twice(x):\n    return x\n")
    with pytest.raises(ValueError, match=r"two files define measure 'twice': a, b"):
        _ = Registry("measure", "*.py", root=tmp_path).entries


def test_the_chosen_function_has_its_options_bound():
    step = Registry("schedule", "training/learning_rates.py").get("step(drops=(0.5,), factor=0.5)")
    assert [step(p) for p in (0.0, 0.49, 0.5, 1.0)] == [1.0, 1.0, 0.5, 0.5]
    assert step.__name__ == "step"
