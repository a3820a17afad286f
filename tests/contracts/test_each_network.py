"""Each network, with an eighth of its filters, trains and resumes; using it changes nothing of it."""

from functools import partial

import pytest
import torch
from conftest import narrow
from promises import PRUNED, trains_and_resumes, unchanged

from pruning.accounting import dense
from settings.meaning import task_of
from settings.registry import NETWORKS

# detectors, which take larger images and other targets, have tests of their own: tests/test_detector.py
CLASSIFIERS = [name for name, entry in NETWORKS.entries.items() if task_of(entry) == "classification"]


def small(name: str, **options):
    return narrow(NETWORKS.get(name)(**options))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_it_trains_and_resumes(tmp_path, monkeypatch, name):
    network = small(name)
    pruned = PRUNED if network.units else ["--prune_type", "unstructured"]  # without a convolution no filter goes
    trains_and_resumes(tmp_path, monkeypatch, *pruned, "--image_size", "32", "--lr", "0.01", network=partial(small, name))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_evaluating_it_changes_nothing(name):
    network = small(name, classes=3).eval()
    x = torch.randn(2, 3, 32, 32)
    with unchanged(network), torch.no_grad():
        first, second = network(x), network(x)
    assert torch.equal(first, second)
    assert first.shape == (2, 3)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_parameter_learns(name):
    network = small(name, classes=3)
    network(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []


VALUES = {"classes": (3,), "channels": (1,), "size": (28,), "groups": (2,), "width": (4,), "widen": (0.5,)}
VALUES |= {"dropout": (0.5,), "drop_path": (0.5,), "norm": (False,), "maps": (2,)}


@pytest.mark.parametrize(("name", "option", "value"), [
    (name, option, value)
    for name, entry in NETWORKS.entries.items()
    for option, declared in entry.options.items()
    for value in (declared.choices or VALUES[option])
    if value != declared.default
])  # fmt: skip
def test_every_option_has_an_effect(name, option, value):
    needed = dict(NETWORKS.entries[name].options[option].needs)
    with torch.device("meta"):
        plain, other = NETWORKS.get(name)(**needed), NETWORKS.get(name)(**needed, **{option: value})
        tensors = [{key: value.shape for key, value in network.state_dict().items()} for network in (plain, other)]
        # the stem of some differs in its stride alone
        assert tensors[0] != tensors[1] or dense(plain, 32).macs != dense(other, 32).macs
