"""Each entry of each registry says in one line what it is, and then where it comes from or how it is computed."""

import importlib
import inspect
import re

import pytest

from settings import registry

pytestmark = pytest.mark.core

REGISTRIES = {name: value for name, value in vars(registry).items() if isinstance(value, registry.Registry)}
# these are methods of the literature; the others are this program's own words for when, where and what
METHODS = ("CRITERIA", "REGULARIZERS", "OPTIMISERS", "NETWORKS", "LEARNING_RATES", "DISTILLATIONS")
OWN = {("CRITERIA", "random"): "a control"}  # what has neither a source nor a formula, and why
SOURCE_OR_FORMULA = re.compile(r"\b(19|20)\d\d\b|[=^|]|\bsum\b")


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, entries in REGISTRIES.items() for name in entries.entries])
def test_it_says_what_it_is(kind, name):
    entry = REGISTRIES[kind].entries[name]
    text = inspect.getdoc(getattr(importlib.import_module(entry.module), entry.function)) or ""
    assert len(text.split("\n")[0]) > 15
    if kind in METHODS and (kind, name) not in OWN:
        assert SOURCE_OR_FORMULA.search(text), text


def test_the_exceptions_are_there():
    assert all(name in REGISTRIES[kind].entries for kind, name in OWN)
