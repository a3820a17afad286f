"""Each reconstruction trains and resumes, keeps as many channels as it is asked to, and each of its options changes something."""

import copy

import pytest
import torch
from promises import PRUNED, differences, trains_and_resumes, unchanged

from pruning.readers import Reader
from pruning.repair import Problem
from settings.registry import RECONSTRUCTIONS

pytestmark = pytest.mark.core
# options with a value of their own that is not one of several choices, and another value of it
OTHERS = {"rows": 90, "images": 8}


def reader(samples: int, seed: int = 3) -> Reader:
    """What a reader of seven channels, one of them dead, saw at so many places; it wants something else than it gives."""
    generator = torch.Generator().manual_seed(seed)
    weight, inputs = (torch.randn(n, 7, 4, generator=generator, dtype=torch.float64) for n in (5, 150))
    inputs[:, 2] = 0
    wanted = torch.randn(150, 5, generator=generator, dtype=torch.float64) + inputs.flatten(1) @ weight.flatten(1).T
    return Reader(weight, inputs[:samples], wanted[:samples], torch.arange(samples) % 5)


def problem(chosen: bool = True, seed: int = 3) -> Problem:
    keep = torch.tensor([1, 0, 1, 0, 1, 1, 0], dtype=torch.bool)
    return Problem(keep, chosen, lambda rows, images: [reader(min(rows, 150) - images // 10, seed)])


@pytest.mark.parametrize("name", RECONSTRUCTIONS.entries)
def test_it_trains_and_resumes(tmp_path, monkeypatch, name):
    flags = ["--prune_phase", "after", "--prune_until", "0.5", "--reconstruct", name]
    trained = trains_and_resumes(tmp_path, monkeypatch, *PRUNED, *flags)
    assert [row["stage"] for row in trained["rows"]] == ["training", "after the cut"]
    records = trained["results"]["reconstruction"]
    assert [record["layer"] for record in records] == ["stem", "a1", "a2", "b1", "b2"]
    kept = trained["rows"][-1]["kept_filters"]
    assert {record["layer"]: record["kept"] for record in records} == kept
    assert trained["rows"][0]["cut"] == 0


@pytest.mark.parametrize("chosen", [True, False])
@pytest.mark.parametrize("name", RECONSTRUCTIONS.entries)
def test_it_keeps_so_many_and_leaves_what_it_was_given(name, chosen):
    method, asked, given = RECONSTRUCTIONS.get(name), problem(chosen), reader(100)
    before = copy.deepcopy(given)
    asked.draw = lambda rows, images: [given]
    with unchanged():
        (keep, (weight,)), (again, (same,)) = method(asked), method(asked)
    assert keep.dtype == torch.bool
    assert int(keep.sum()) == 4
    assert chosen or torch.equal(keep, asked.keep)
    assert weight.shape == given.weight.shape
    assert torch.isfinite(weight).all()
    assert not torch.equal(weight[:, keep], given.weight[:, keep])
    assert torch.equal(keep, again)
    assert torch.equal(weight, same)
    assert differences(vars(before), vars(given)) == []


@pytest.mark.parametrize(("name", "option", "value"), [
    (name, option, value)
    for name, entry in RECONSTRUCTIONS.entries.items()
    for option, declared in entry.options.items()
    for value in (declared.choices or (OTHERS[option],))
    if value != declared.default
])  # fmt: skip
def test_every_option_has_an_effect(name, option, value):
    differ = []
    for seed in range(5):
        results = [RECONSTRUCTIONS.get(name, **options)(problem(seed=seed)) for options in ({}, {option: value})]
        differ.append(not torch.equal(results[0][1][0], results[1][1][0]))
    assert any(differ)
