"""Each scope trains and resumes, and leaves the scores alone. What its options do is in tests/pruning."""

import inspect
import json
from functools import partial

import pytest
import torch
from promises import PRUNED, trains_and_resumes, unchanged

from settings.registry import SCOPES

# what scopes that read a file find in it, for the small network
FILES = {
    "preset": ("name", {"kept": {"stem": 3, "a1": 3, "a2": 3, "b1": 2, "b2": 3}}),
    "sensitivity": ("file", {"rates": [0.5], "layers": {name: [10.0] for name in ("stem", "a1", "a2", "b1", "b2")}}),
}


@pytest.fixture(params=SCOPES.entries)
def scope(request, tmp_path):
    """A scope as it is typed."""
    if request.param not in FILES:
        return request.param
    option, content = FILES[request.param]
    (tmp_path / "counts.json").write_text(json.dumps(content))
    return f"{request.param}({option}={str(tmp_path / 'counts.json')!r})"


def test_it_trains_and_resumes(tmp_path, monkeypatch, scope):
    counted = scope.startswith("preset")
    pruned = ["--prune_type", "structured"] if counted else PRUNED
    if "single weights" in SCOPES.entry(scope).traits:
        pruned = ["--prune_type", "unstructured", "--prune_rate", "0.3"]
    trains_and_resumes(tmp_path, monkeypatch, *pruned, "--prune_scope", scope)


def test_choosing_leaves_the_scores_and_the_random_state_alone(two_blocks, scope):
    scores = {name: torch.rand(unit.filters) for name, unit in two_blocks.units.items()}
    before = {name: score.clone() for name, score in scores.items()}
    choose = SCOPES.get(scope)
    if "weights" in inspect.signature(choose).parameters:
        choose = partial(choose, weights=lambda: scores)
    linear = {"linear": set()} if "linear" in inspect.signature(choose).parameters else {}
    with unchanged(two_blocks):
        keep, again = choose(scores, 0.5, **linear), choose(scores, 0.5, **linear)
    for name, score in scores.items():
        assert torch.equal(score, before[name])
        assert torch.equal(keep[name], again[name])
        assert keep[name].dtype == torch.bool
        assert keep[name].shape == score.shape
