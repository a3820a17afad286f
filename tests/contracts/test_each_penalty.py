"""Each penalty and each proximal step trains, resumes and touches nothing but what it is for."""

import pytest
import torch
from promises import trains_and_resumes, unchanged

from pruning.gates.scale import put_scales
from settings.registry import REGULARIZERS, parse_call

pytestmark = pytest.mark.core

# two values of each option that must give two results
OPTION_VALUES = {"weight": (0.5, 0.25), "tau": (1e-4, 0.2), "iterations": (1, 8), "linear": (False, True)}
OPTION_VALUES |= {"part": ((0, 1), (1, 2)), "of": ("block", "filter"), "momentum": (0.9, 0.5)}
PENALTIES = [name for name, entry in REGULARIZERS.entries.items() if entry.kind != "proximal"]


@pytest.mark.parametrize("name", REGULARIZERS.entries)
def test_it_trains_and_resumes(tmp_path, monkeypatch, name):
    rows = trains_and_resumes(tmp_path, monkeypatch, "--reg", name)["rows"]
    if name in PENALTIES:  # the term has its own name among the measures
        assert all(row["train"][name] > 0 for row in rows)


@pytest.mark.parametrize("name", PENALTIES)
def test_measuring_changes_nothing(two_blocks, name):
    penalty = REGULARIZERS.get(name)
    with unchanged(two_blocks):
        first, second = penalty(two_blocks), penalty(two_blocks)
    assert torch.equal(first, second)
    assert first.shape == ()


def applied(network, text: str) -> list[torch.Tensor]:
    """What a penalty says and the gradient that it leaves, or the parameters after a proximal step."""
    function = REGULARIZERS.get(text)
    if REGULARIZERS.entry(text).kind == "proximal":
        if "learned scales" in REGULARIZERS.entry(text).traits:
            put_scales(network, parse_call(text)[1].get("of", "block"))
            for unit in network.units.values():
                if unit.gate is not None:
                    unit.gate.scale.grad = torch.full_like(unit.gate.scale, 0.5)
        function(network, 0.1)
        function(network, 0.1)
        values = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
        for unit in network.units.values():
            unit.gate = None
        return [values]
    value = function(network)
    gradients = torch.autograd.grad(value, list(network.parameters()), allow_unused=True)
    return [value.detach(), *(gradient for gradient in gradients if gradient is not None)]


@pytest.mark.parametrize(("name", "option"), [(n, o) for n, entry in REGULARIZERS.entries.items() for o in entry.options])
def test_every_option_has_an_effect(two_blocks, name, option):
    state = {key: value.clone() for key, value in two_blocks.state_dict().items()}
    results = []
    for value in OPTION_VALUES[option]:
        two_blocks.load_state_dict(state)
        results.append(applied(two_blocks, f"{name}({option}={value!r})"))
    assert any(not torch.equal(one, other) for one, other in zip(*results, strict=True))
