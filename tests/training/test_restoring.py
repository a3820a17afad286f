"""These tests check what a run takes of a checkpoint, beyond what whole runs that go on show."""

from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, run_program

from models.shapes import check_pass
from settings.errors import Refused
from settings.schema import Unfit
from training.restoring import what_to_repair


def kept(network):
    return {"keep": {"a1": torch.ones(5, dtype=torch.bool)}, "original": network.state_dict()}


def test_what_is_kept_for_later_repairs_is_taken_back(two_blocks):
    run, state = SimpleNamespace(model=two_blocks), kept(two_blocks)
    assert what_to_repair(run, {"to_repair": state}) is state
    assert what_to_repair(run, {}) == {}  # of a run from before there were repairs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": {"a1": torch.ones(6, dtype=torch.bool)}}, r"keep\.a1 is bool of shape \(6,\)"),
        ({"keep": {"a1": torch.ones(5)}}, r"keep\.a1 is float32"),
        ({"keep": {"c1": torch.ones(5, dtype=torch.bool)}}, r"keep\.c1"),
        ({"keep": {"a1": [True]}}, r"keep\.a1 is a list of 1, not a tensor"),
        ({"original": {}}, r"original has no 'stem\.layer\.weight'"),
        ({"original": None}, "original is None"),
    ],
)
def test_what_is_of_another_network_is_refused(two_blocks, change, message):
    with pytest.raises(Unfit, match=message):
        what_to_repair(SimpleNamespace(model=two_blocks), {"to_repair": kept(two_blocks) | change})


def test_half_of_it_is_refused(two_blocks):
    with pytest.raises(Unfit, match="to_repair has no 'original'"):
        what_to_repair(SimpleNamespace(model=two_blocks), {"to_repair": {"keep": kept(two_blocks)["keep"]}})


def test_a_narrower_branch_whose_joint_is_missing_is_refused(two_blocks):
    shapes = two_blocks.shapes()
    shapes["units"]["a2"][0] = 4
    two_blocks.reshape(shapes)
    with pytest.raises(Unfit, match="it cannot be computed"):
        check_pass(two_blocks, (3, 8, 8))


@pytest.mark.parametrize(("flags", "result"), [
    (["--prune_type", "structured", "--prune_rate", "0.5", "--compact"], "removal"),
    (["--factorise", "svd(fraction=0.5)"], "factorisation"),
])  # fmt: skip
def test_a_checkpoint_without_what_came_of_its_stages_is_refused(flags, result, tmp_path):
    """Its run would end as if nothing had been done, with lines missing."""
    run_program(*TINY, "--epochs", "1", "--finetune_epochs", "1", "--quiet", *flags, "--out_dir", str(tmp_path / "run"))
    (tmp_path / "run" / "summary.json").unlink()
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    state = torch.load(checkpoint, weights_only=True)
    del state["results"][result]
    torch.save(state, checkpoint)
    with pytest.raises(Refused, match=f"lacks what came of its stages: {result}"):
        run_program("--resume", str(tmp_path / "run"), "--quiet")
