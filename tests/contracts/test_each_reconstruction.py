"""Each reconstruction trains and resumes, keeps as much as it is asked to, and each of its options changes something."""

import copy

import pytest
import torch
from conftest import TwoBlocks
from promises import PRUNED, differences, trains_and_resumes, unchanged

from pruning import Pruner
from pruning.readers import Reader
from pruning.repair import Problem
from pruning.survivors import Survivors
from settings.registry import RECONSTRUCTIONS
from tasks.classification import Classification

pytestmark = pytest.mark.core
# options with a value of their own that is not one of several choices, and another value of it
OTHERS = {"rows": 90, "images": 8, "block": 7, "damping": 0.5, "steps": 2}
OF_SURVIVORS = [name for name, entry in RECONSTRUCTIONS.entries.items() if "surviving weights" in entry.traits]
OF_READERS = [name for name in RECONSTRUCTIONS.entries if name not in OF_SURVIVORS]
OF_HIDDEN = [name for name, entry in RECONSTRUCTIONS.entries.items() if "hidden layers" in entry.traits]


def reader(samples: int, seed: int = 3) -> Reader:
    """What a reader of seven channels, one of them dead, saw at so many places; it wants something else than it gives."""
    generator = torch.Generator().manual_seed(seed)
    weight, inputs = (torch.randn(n, 7, 4, generator=generator, dtype=torch.float64) for n in (5, 150))
    inputs[:, 2] = 0
    wanted = torch.randn(150, 5, generator=generator, dtype=torch.float64) + inputs.flatten(1) @ weight.flatten(1).T
    return Reader(weight, inputs[:samples], wanted[:samples], torch.arange(samples) % 5)


def problem(chosen: bool = True, seed: int = 3) -> Problem:
    keep = torch.tensor([1, 0, 1, 0, 1, 1, 0], dtype=torch.bool)
    draw, incoming = lambda rows, images: [reader(min(rows, 150) - images // 10, seed)], torch.randn(7, 5, dtype=torch.float64)
    return Problem(keep, chosen, draw, lambda: incoming, lambda: [reader(1, seed).weight])


@pytest.mark.parametrize("name", OF_READERS)
def test_it_trains_and_resumes(tmp_path, monkeypatch, name):
    flags = ["--prune_phase", "after", "--prune_until", "0.5", "--reconstruct", name]
    trained = trains_and_resumes(tmp_path, monkeypatch, *PRUNED, *flags)
    assert [row["stage"] for row in trained["rows"]] == ["training", "after the cut"]
    records = trained["results"]["reconstruction"]
    cut = ["a1", "b1"] if name in OF_HIDDEN else ["stem", "a1", "a2", "b1", "b2"]
    assert [record["layer"] for record in records] == cut
    kept = trained["rows"][-1]["kept_filters"]
    assert {record["layer"]: record["kept"] for record in records} == {layer: kept[layer] for layer in cut}
    assert trained["rows"][0]["cut"] == 0


@pytest.mark.parametrize("kind", ["unstructured", "kernels"])
@pytest.mark.parametrize("name", OF_SURVIVORS)
def test_it_trains_and_resumes_with_what_survives(tmp_path, monkeypatch, name, kind):
    pruned = ["--prune_type", kind, "--prune_rate", "0.3", "--prune_imp", "OBS"]
    flags = ["--prune_phase", "after", "--prune_until", "0.5", "--reconstruct", name]
    trained = trains_and_resumes(tmp_path, monkeypatch, *pruned, *flags)
    assert [row["stage"] for row in trained["rows"]] == ["training", "after the cut"]
    assert [row["cut"] for row in trained["rows"]] == [0, trained["results"]["reconstruction"][-1]["cut"]]
    for layer, mask in trained["model"].items():
        if layer.endswith(".gate.mask"):
            weight = trained["model"][layer.replace("gate.mask", "layer.weight")]
            assert (weight[mask == 0] == 0).all()


def updated(name: str, **options) -> dict:
    """The small network's weights after a cut and an update on 16 images or, where fewer are asked for, on the first 8."""
    torch.manual_seed(0)
    network, images = TwoBlocks(), torch.randn(16, 3, 8, 8)
    pruner = Pruner(network, prune_type="unstructured", rate=0.5)

    def sample(count: int):
        return zip(images.split(8)[: count // 8], torch.arange(16).remainder(4).split(8), strict=False)

    pruner.look_at(lambda: sample(16), Classification)
    survivors = Survivors(pruner, sample)
    with torch.no_grad(), unchanged():
        records = RECONSTRUCTIONS.get(name, **options)(survivors)
    assert records[-1]["cut"] == pruner.entries // 2
    return network.state_dict()


@pytest.mark.parametrize(("name", "chosen"), [(n, c) for n in OF_READERS for c in (True, False) if c or n not in OF_HIDDEN])
def test_it_keeps_so_many_and_leaves_what_it_was_given(name, chosen):
    method, asked, given = RECONSTRUCTIONS.get(name), problem(chosen), reader(100)
    before = copy.deepcopy(given)
    asked.draw, asked.outgoing = lambda rows, images: [given], lambda: [given.weight]
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
    if name in OF_SURVIVORS:
        one, other = (updated(name, **options) for options in ({}, {option: value}))
        assert differences(one, other)
        return
    differ = []
    for seed in range(5):
        results = [RECONSTRUCTIONS.get(name, **options)(problem(seed=seed)) for options in ({}, {option: value})]
        differ.append(not torch.equal(results[0][1][0], results[1][1][0]))
    assert any(differ)
