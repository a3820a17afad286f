"""These tests check names on the command line: how they are discovered, their options, suggestions, refusals."""

import pytest

from settings.registry import CRITERIA, GRANULARITIES, PHASES, SCOPES, Registry, parse_call

pytestmark = pytest.mark.core

SOURCE = '''
import typing
from typing import Annotated, Literal
UNREAD: tuple = ("a constant says nothing",)
def size(
    x: Annotated[float, "of filters"],
    *,
    power: Annotated[float, "fraction"] = 2.0,
    mode: typing.Annotated[Literal["sum", "mean"], "fraction"] = "sum",
    count: Annotated[int, "at least 1", "below 5", "needs mode='mean'"] = 3,
    spread: Annotated[tuple, "at most 1", "unless power"] = (0.5,),
) -> Annotated[float, "scope: global(floor=0)"]:
    """Some size (Somebody, 2020)."""
    return x ** power
def nothing(x) -> None:
    """Changes x, and returns nothing."""
class Base:
    """What Sizes derives from is no entry."""
class Sizes(Base):
    """A class with an option."""
    def __init__(self, x=0, *, depth: int = 1):
        self.depth = depth
class Plain:
    """A class without any."""
class _Hidden: ...
def lambda_(x):
    """A Python keyword as a name."""
def _helper(x): ...
'''


TRAITS = {"of filters": ("x",), "fraction": ("option",), "scope:": ("return",)}


@pytest.fixture
def registry(tmp_path):
    (tmp_path / "sizes.py").write_text(SOURCE)
    return Registry("measure", "*.py", root=tmp_path, traits=TRAITS)


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
    assert sorted(registry.entries) == ["lambda", "nothing", "plain", "size", "sizes"]
    assert registry.entries["size"].summary == "Some size (Somebody, 2020)."


def test_traits_are_read_from_the_signature(registry):
    traits = {"of filters": ("x",), "fraction": ("power", "mode"), "scope": ("global(floor=0)",)}
    assert registry.entry("size(power=1.0)").traits == traits
    assert registry.entry("lambda").traits == {}
    with pytest.raises(ValueError, match="'sum', 'mean'"):  # the choices are seen through the annotation
        registry.check("size(mode='max')")


@pytest.mark.parametrize(
    ("signature", "words"),
    [
        ("x: Annotated[float, 'of filter']", "sizes.size, x: unknown trait 'of filter' of a measure: did you mean 'of filters'"),
        ("x: Annotated[float, 'fraction']", "sizes.size, x: trait 'fraction' of a measure belongs to option"),
        ("y: Annotated[float, 'of filters']", "belongs to x"),
        ("x, *, a: Annotated[int, 'of filters'] = 1", "sizes.size, a: trait 'of filters' of a measure belongs to x"),
        ("x: Annotated[float, 'scope: local']", "belongs to return"),
        ("x: Annotated[float, 'scope']", "unknown trait 'scope'"),
        ("x: Annotated[float, 'of filters: all']", "unknown trait 'of filters: all'"),
        ("x: Annotated[float, 3]", "unknown trait 3"),
        ("x: Annotated[float, WORD]", "unknown trait None"),
        ("x: list[Annotated[float, 'of filters']]", "put it around the whole type"),
        ("x: Annotated[float, 'of filters'] | None", "put it around the whole type"),
    ],
)
def test_a_trait_that_would_be_lost_is_an_error(tmp_path, signature, words):
    (tmp_path / "sizes.py").write_text(f"def size({signature}):\n    return x\n")
    with pytest.raises(ValueError, match=r"sizes\.size, ") as caught:
        _ = Registry("measure", "*.py", root=tmp_path, traits=TRAITS).entries
    assert words in str(caught.value)


def test_the_words_of_a_class_name_are_joined(tmp_path):
    (tmp_path / "sizes.py").write_text("class TwoWords: ...\nclass CIFAR10: ...\nclass Layer2Norm: ...\n")
    assert [*Registry("measure", "*.py", root=tmp_path).entries] == ["two_words", "cifar10", "layer2_norm"]


def test_a_class_is_an_entry_named_in_lower_case(registry):
    assert registry.entries["sizes"].summary == "A class with an option."
    assert registry.check("sizes(depth=2)") == ("sizes", {"depth": 2})
    assert registry.entries["plain"].options == {}
    with pytest.raises(ValueError, match="it has none"):
        registry.check("plain(depth=2)")


def test_what_returns_none_is_a_proximal_step(registry):
    kinds = {name: entry.kind for name, entry in registry.entries.items()}
    assert kinds == {"size": "measure", "lambda": "measure", "nothing": "proximal", "sizes": "measure", "plain": "measure"}


@pytest.mark.parametrize("registry", [CRITERIA, PHASES, SCOPES])
def test_every_trait_in_the_vocabulary_is_used(registry):
    carried = {trait for entry in registry.entries.values() for trait in entry.traits}
    assert {word.rstrip(":") for word in registry.words} == carried


def test_scopes_that_criteria_ask_for_exist():
    asked = [entry.traits["scope"][0] for entry in CRITERIA.entries.values() if "scope" in entry.traits]
    assert asked
    for text in asked:
        SCOPES.check(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sise", "did you mean 'size"),
        ("SIZE", "did you mean 'size'"),
        ("zzz", "choose from lambda, nothing, plain, size, sizes"),
        ("size(powr=1)", "did you mean 'power'"),
        ("lambda(x=1)", "it has none"),
        ("size(mode='max')", "'sum', 'mean'"),
        ("size(power='2')", "float"),
        ("size(power=-1)", "at least 0"),
        ("size(power=1e999)", "at least 0"),
        ("size(mode='mean', count=0)", "at least 1 and below 5, not 0"),
        ("size(mode='mean', count=5)", "at least 1 and below 5, not 5"),
        ("size(count=4)", "'count' of measure 'size' has no effect without mode='mean'"),
        ("size(spread=(0.1,), power=1.0)", "'spread' of measure 'size' has no effect beside power=1.0"),
        ("size(spread=(0.1, 2))", "at least 0 and at most 1, not 2"),
        ("size(spread=(0.1, '2'))", "'2' has the wrong type"),
        ("size(spread=(1e999,))", "at most 1"),
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
    step = Registry("schedule", "training/learning_rates.py").get("step(factor=0.5)", factor=0.25, drops=(0.5,))
    assert step(1.0) == 0.25  # what the program binds wins
    with pytest.raises(ValueError, match="schedule 'step' has no option 'other'"):
        Registry("schedule", "training/learning_rates.py").get("step", other=1)


def test_a_chosen_class_is_made_with_its_options():
    granularity = GRANULARITIES.get("structured")()
    assert type(granularity).__name__ == "Structured"
