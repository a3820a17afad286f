"""Each optimiser trains and resumes with its own state, and each of its options changes what is learned."""

import pytest
import torch
from conftest import TwoBlocks
from promises import trains_and_resumes

from settings.arguments import parse
from settings.registry import OPTIMISERS
from training.build import build_optimizer

pytestmark = pytest.mark.core

# two values of each option that must give two results
OPTION_VALUES = {"nesterov": (False, True), "beta1": (0.9, 0.5), "beta2": (0.999, 0.9), "eps": (1e-8, 0.1)}


@pytest.mark.parametrize("name", OPTIMISERS.entries)
def test_it_trains_and_resumes(tmp_path, monkeypatch, name):
    state = trains_and_resumes(tmp_path, monkeypatch, "--optimizer", name, "--lr", "0.01")
    assert state["optimizer"]["state"]


def learned(text: str, batch) -> list[torch.Tensor]:
    """The parameters of the small network after three steps."""
    torch.manual_seed(0)
    network = TwoBlocks().double()
    optimizer = build_optimizer(network, parse(["--optimizer", text, "--lr", "0.01"]).training, "cpu")
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(batch[0]), batch[1]).backward()
        optimizer.step()
    return [parameter.detach() for parameter in network.parameters()]


@pytest.mark.parametrize(("name", "option"), [(n, o) for n, entry in OPTIMISERS.entries.items() for o in entry.options])
def test_every_option_has_an_effect(batch, name, option):
    first, second = (learned(f"{name}({option}={value})", batch) for value in OPTION_VALUES[option])
    assert any(not torch.equal(one, other) for one, other in zip(first, second, strict=True))
