"""These tests hold the criteria of initial and final weights against worked values and a search of the percentile."""

import pytest
import torch
from conftest import TwoBlocks, run_program
from promises import STEPS
from torch import nn

import models
from models import Unit
from pruning.context import Context
from pruning.gates.weight import Weight
from pruning.granularities import Unstructured
from settings.errors import Failed
from settings.registry import CRITERIA
from training.earlier_networks import read_network

pytestmark = pytest.mark.core

INITIAL, FINAL = [0.1, -0.5, 0.3, -0.2], [-0.4, -0.6, 0.1, 0.25]
WORKED = {
    "by='large_final'": [0.4, 0.6, 0.1, 0.25],
    "by='small_final'": [-0.4, -0.6, -0.1, -0.25],
    "by='large_init'": [0.1, 0.5, 0.3, 0.2],
    "by='small_init'": [-0.1, -0.5, -0.3, -0.2],
    "by='magnitude_increase'": [0.3, 0.1, -0.2, 0.05],
    "by='movement'": [0.5, 0.1, 0.2, 0.45],
    "by='large_final', signs='same'": [0.0, 0.6, 0.1, 0.0],
    "by='large_final', signs='different'": [0.4, 0.0, 0.0, 0.25],
    "by='magnitude_increase', signs='same'": [-0.2, 0.1, -0.2, -0.2],
    "by='large_init_large_final'": [0, 3, 0, 1],  # the smaller of the ranks 0 3 2 1 and 2 3 0 1
    "by='small_init_small_final'": [1, 0, 1, 2],
    "counts='signs'": [False, True, True, False],
}


def scored(options: str, initial, final, mask=None) -> torch.Tensor:
    initial, final = torch.tensor([initial], dtype=torch.float64), torch.tensor([final], dtype=torch.float64)
    unit = Unit(nn.Linear(final.shape[1], 1, bias=False), norm=False).double()
    unit.gate = Weight(final.shape)
    unit.layer.weight.data = initial.clone()
    unit.gate.keep_initial(unit.weight)
    unit.layer.weight.data = final
    if mask is not None:
        unit.gate.set(torch.tensor([mask]))
    return CRITERIA.get(f"from_initial({options})")(unit, Context(None, Unstructured.groups, None, 0))


@pytest.mark.parametrize("options", WORKED)
def test_the_worked_scores(options):
    scores, wanted = scored(options, INITIAL, FINAL), torch.tensor([WORKED[options]])
    assert (scores.dtype == torch.bool) == (wanted.dtype == torch.bool)  # bools say what is kept
    torch.testing.assert_close(scores.double(), wanted.double(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("sign", [1, -1], ids=["large", "small"])
def test_what_both_keep_is_above_one_percentile_that_is_found_by_bisection(sign):
    """Only ranks count, and so the percentile is that of ranks; what is cut for good has none."""
    first, second = (torch.randn(200, generator=torch.Generator().manual_seed(seed)).double() for seed in (1, 2))
    mask = torch.rand(200, generator=torch.Generator().manual_seed(3)) < 0.8
    name = "large_init_large_final" if sign == 1 else "small_init_small_final"
    scores = scored(f"by='{name}'", first.tolist(), second.tolist(), mask.tolist())[0]
    one, other, target = sign * first.abs()[mask], sign * second.abs()[mask], 60
    low, high = 0.0, 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        kept = (one >= one.quantile(middle)) & (other >= other.quantile(middle))
        low, high = (middle, high) if kept.sum() > target else (low, middle)
    chosen = scores.argsort(descending=True)[: int(kept.sum())]
    assert torch.equal(chosen.sort().values, mask.nonzero().squeeze(1)[kept])


def test_it_is_refused_where_no_initial_weights_are_kept():
    unit = Unit(nn.Linear(4, 1), norm=False)
    with pytest.raises(Failed, match="only --prune_imp from_initial keeps"):
        CRITERIA.get("from_initial")(unit, Context(None, Unstructured.groups, None, 0))


def test_its_scope_is_its_own_layer():
    assert CRITERIA.entry("from_initial").traits["scope"] == ("local",)


def test_the_checkpoint_of_a_run_that_keeps_initial_weights_is_read(tmp_path, monkeypatch):
    """As by --pattern, and by --evaluate of a run that has not ended."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "build", lambda _, classes=10, **__: TwoBlocks(classes=classes))
    cut = ["--prune_type", "unstructured", "--prune_imp", "from_initial", "--prune_rate", "0.5", "--prune_phase", "after"]
    run_program(*STEPS, *cut, "--out_dir", "run")
    network, *_ = read_network("run/checkpoint.pt")
    state = torch.load("run/checkpoint.pt", weights_only=True)["model"]
    assert torch.equal(network.get_submodule("stem").gate.initial, state["stem.gate.initial"])
