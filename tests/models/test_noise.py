"""These tests hold what networks drop while they train to its expectation, and to nothing in evaluation."""

import copy

import pytest
import torch
from conftest import TwoBlocks, narrow

import models
from models.joint import DropPath, Joint, linear_decay
from pruning import Pruner
from pruning.removal import Removal
from settings.registry import NETWORKS

pytestmark = pytest.mark.core

RESIDUAL = ["resnet20", "resnet18", "resnext11"]  # the shallowest of each file


def test_rates_rise_to_that_of_the_last_block():
    assert linear_decay(0.5, 5) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    network = models.build("resnet20(drop_path=0.18)")
    rates = [float(joint.drop_path.rate) for joint in network.joints.values()]
    assert rates == pytest.approx([0.02 * block for block in range(1, 10)])
    assert all(joint.drop_path is None for joint in models.build("resnet20").joints.values())


def test_a_branch_is_dropped_for_an_image_as_a_whole_and_its_mean_stays():
    joint = Joint(drop_path=0.3)
    branch, stream = torch.rand(4000, 2, 3, 3) + 0.1, torch.rand(4000, 2, 3, 3)
    added = joint(branch.clone(), stream.clone()) - stream
    dropped = (added.abs() < 1e-6).flatten(1).all(1)
    torch.testing.assert_close(added[~dropped], branch[~dropped] / 0.7, atol=1e-5, rtol=1e-5)
    deviation = (0.3 * 0.7 / 4000) ** 0.5
    assert abs(float(dropped.float().mean()) - 0.3) < 4 * deviation
    factors = DropPath(0.3).factor(torch.zeros(100_000, 1, 1, 1))
    assert float(factors.mean()) == pytest.approx(1, abs=4 * (0.3 / 0.7 / 100_000) ** 0.5)


@pytest.mark.parametrize("name", RESIDUAL)
def test_in_evaluation_it_is_the_network_without(name):
    plain = narrow(NETWORKS.get(name)(classes=3)).eval()
    noisy = narrow(NETWORKS.get(name)(classes=3, dropout=0.4, drop_path=0.4))
    noisy.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(2, 3, 16, 16)
    noisy.eval()
    with torch.no_grad():
        assert torch.equal(noisy(x), plain(x))
        noisy.train_without_dropout()
        plain.train()
        assert torch.equal(noisy(x), plain(x))
        noisy.train()
        assert not torch.equal(noisy(x), plain(x))


def test_the_classifier_reads_what_dropout_leaves():
    network = models.build("resnet20(dropout=0.25)")
    unit = network.get_submodule("classifier")
    torch.nn.init.ones_(unit.layer.weight)
    torch.nn.init.zeros_(unit.layer.bias)
    logits = unit(torch.ones(2000, 64)).detach()
    assert torch.equal(logits[:, 0], logits[:, 1])  # it drops what is read, not the logits one by one
    assert float(logits.mean()) == pytest.approx(64, abs=4 * (64 * 0.25 / 0.75 / 2000) ** 0.5)
    assert [name for name, each in network.all_units.items() if each.dropout is not None] == ["classifier"]


def dropping(network, rate: float = 0.5):
    for joint in network.joints.values():
        joint.drop_path = DropPath(rate).to(next(network.parameters()).dtype)
    return network


@pytest.mark.parametrize("gate", ["output", "weight"])
def test_it_goes_along_with_masks_and_removal(gate):
    """The smaller network drops the same branches, and what their removed filters still add; without noise they agree too."""
    network = dropping(TwoBlocks().double())
    pruner = Pruner(network, prune_type="structured", criterion="L1", rate=0.4, gate=gate)
    pruner.update(0.4)
    network.eval()
    x = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    smaller = Removal(copy.deepcopy(network)).compact().eval()
    assert sum(unit.filters for unit in smaller.units.values()) < sum(unit.filters for unit in network.units.values())
    with torch.no_grad():
        wanted, found = network(x), smaller(x)
        if gate == "output":
            torch.testing.assert_close(found, wanted)
        for each in (network, smaller):
            for joint in each.joints.values():
                joint.drop_path.train()
        torch.manual_seed(4)
        wanted_noisy = network(x)
        torch.manual_seed(4)
        found_noisy = smaller(x)
    assert not torch.allclose(wanted_noisy, wanted)
    torch.testing.assert_close(found_noisy - found, wanted_noisy - wanted)
