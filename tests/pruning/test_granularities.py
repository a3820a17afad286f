"""These tests count by hand what each granularity cuts: filters, kernels and single weights."""

import itertools

import pytest
import torch
from toys import TOYS, outputs_of, toy

from pruning import Pruner, accounting
from pruning.removal import Removal
from settings.registry import CRITERIA, GRANULARITIES

pytestmark = pytest.mark.core

ANY = [name for name, entry in CRITERIA.entries.items() if "filters only" not in entry.traits]


def by_hand(network, image_size):
    """Weights in force that are not 0, by looking at each; biases, scales and shifts stay."""
    pixels, whole = accounting.positions(network, image_size), accounting.dense(network, image_size)
    parameters, macs = whole.parameters, whole.macs
    for name, unit in network.all_units.items():
        zeros = int((unit.weight_in_force == 0).sum())
        parameters, macs = parameters - zeros, macs - zeros * pixels[name]
    return parameters, macs


@pytest.mark.parametrize("granularity", GRANULARITIES.entries)
@pytest.mark.parametrize("name", [*TOYS, "two blocks"])
def test_masks_have_the_shape_of_the_scores_and_zeros_are_counted(granularity, name, two_blocks):
    network = two_blocks if name == "two blocks" else toy(name)
    pruner = Pruner(network, prune_type=granularity, rate=0.5, image_size=8, gate="weight")
    pruner.update(0.5)
    pieces = 0
    for path, unit in pruner.units.items():
        shape = pruner.granularity.shape(unit)
        groups = pruner.granularity.groups(unit.weight)
        assert pruner.gates[path].mask.shape == shape == groups.shape[:-1] == pruner.scores()[path].shape
        assert groups.numel() == unit.weight.numel()
        masked = int((unit.weight_in_force == 0).sum())
        assert pruner.granularity.zeros(unit) == masked == accounting.masked_weights(unit)
        pieces += groups[..., 0].numel()
    assert pruner.entries == pieces
    zero, total = accounting.zeros(network)
    assert zero == sum(int((unit.weight_in_force == 0).sum()) for unit in network.all_units.values())
    assert total == sum(parameter.numel() for parameter in network.parameters())
    count = pruner.granularity.count(network, accounting.positions(network, 8))
    assert count == accounting.remaining(network, 8)
    if not pruner.granularity.removable:
        assert (count.parameters, count.macs) == by_hand(network, 8)
        with pytest.raises(ValueError, match="only whole filters"):
            Removal(network)


def test_kernels_go_by_the_norm_of_their_weights(two_blocks):
    """Half of all kernels of all convolutions, the smallest by L1, and no linear layer's weights."""
    pruner = Pruner(two_blocks, prune_type="kernels", scope="global(normalise='none', floor=0)", rate=0.5)
    pruner.update(0.5)
    assert list(pruner.units) == ["stem", "a1", "a2", "b1", "b2"]
    norms = torch.cat([unit.weight.detach().abs().sum((2, 3)).flatten() for unit in pruner.units.values()])
    kept = torch.cat([gate.mask.flatten() for gate in pruner.gates.values()]).bool()
    assert int((~kept).sum()) == pruner.cut() == len(norms) // 2
    assert norms[~kept].max() < norms[kept].min()
    assert pruner.gates["a1"].mask.shape == (5, 6)


@pytest.mark.parametrize("criterion", ANY)
def test_kernels_are_trained_and_cut_by_every_criterion_of_weights(two_blocks, batch, criterion):
    images, labels = batch
    pruner = Pruner(two_blocks, prune_type="kernels", criterion=criterion, rate=0.5)
    pruner.begin(epochs=4, steps=2, sample=lambda: iter([(images, labels)]))
    optimizer = torch.optim.SGD(two_blocks.parameters(), 0.05)
    for epoch, step in itertools.product(range(4), range(2)):
        pruner.before_step(epoch, step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(two_blocks(images), labels).backward()
        optimizer.step()
    assert pruner.cut() == sum(gate.mask.numel() for gate in pruner.gates.values()) // 2
    for unit, gate in zip(pruner.units.values(), pruner.gates.values(), strict=True):
        assert torch.equal(unit.weight_in_force.detach().abs().sum((2, 3)) > 0, gate.mask > 0)


def test_a_masked_kernel_learns_only_while_the_mask_moves(two_blocks, batch):
    images, labels = batch
    pruner = Pruner(two_blocks, prune_type="kernels", rate=0.5)
    pruner.update(0.5)
    # a2 has no ReLU, which would stop the gradient of a filter that never responds
    for moving in (True, False):
        pruner.gates["a2"].straight_through = moving
        loss = torch.nn.functional.cross_entropy(two_blocks(images), labels)
        sizes = torch.autograd.grad(loss, two_blocks.a2.layer.weight)[0].abs().sum((2, 3))[pruner.gates["a2"].mask == 0]
        assert len(sizes) > 0
        assert (sizes > 0).all() if moving else (sizes == 0).all()


@pytest.mark.parametrize("granularity", ["unstructured", "kernels"])
def test_a_budget_of_what_cannot_be_taken_out_is_refused(two_blocks, granularity):
    with pytest.raises(ValueError, match=f"no filter goes as a whole with {granularity}"):
        Pruner(two_blocks, prune_type=granularity, rate=0.5, budget="macs", image_size=8)


@pytest.mark.parametrize("name", TOYS)
def test_masked_kernels_are_zeros_in_the_outputs(name):
    network = toy(name)
    Pruner(network, prune_type="kernels", rate=0.4).update(0.4)
    x = torch.randn(2, network.input_channels, 9, 9, dtype=torch.float64)
    with torch.no_grad():
        masked = outputs_of(network(x))
        for unit in network.all_units.values():
            unit.layer.weight.copy_(unit.weight_in_force)
            unit.gate = None
        for got, wanted in zip(outputs_of(network(x)), masked, strict=True):
            assert torch.equal(got, wanted)
