"""These tests hold the counts after removal against published ones, and against a brute force over slices."""

import pickle

import pytest
import torch

import models
from pruning import OutputGate, Pruner, accounting
from pruning.channels import follow
from pruning.removal import Removal
from settings import arguments


def keep_all(network):
    return {name: torch.ones(unit.filters, dtype=torch.bool) for name, unit in network.units.items()}


def removed(network, kept, image_size):
    return accounting.removed(network, kept, accounting.positions(network, image_size))


def test_vgg16_a_of_li_et_al():
    """Half of the first layer and of the last six: 5.4 M parameters, 2.06e8 MACs (arXiv 1608.08710)."""
    network = models.build("vgg16")
    kept = keep_all(network)
    names = list(kept)
    kept[names[0]][32:] = False
    for name in names[7:]:
        kept[name][256:] = False
    count = removed(network, kept, 32)
    assert (count.parameters, count.macs) == (5_397_034, 206_279_680)


PRESETS = {
    "ResNet-56-A": (773_336, 112_435_840),
    "ResNet-56-B": (735_712, 90_907_264),
    "ResNet-110-A": (1_688_522, 212_779_648),
    "ResNet-110-B": (1_168_424, 155_124_352),
    "VGG-16-A": (5_397_034, 206_279_680),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_leave_what_was_published(preset):
    """Li et al.: parameters and MACs, counted beforehand, and after removal; and the rate that is printed."""
    settings = arguments.parse(["--preset", preset])
    network = models.build(settings.network.arch)
    pruner = Pruner(network, scope=settings.pruning.prune_scope, rate=settings.pruning.prune_rate)
    pruner.update(settings.pruning.prune_rate)
    for count in (accounting.remaining(network, 32), accounting.dense(Removal(network).compact(), 32)):
        assert (count.parameters, count.macs) == PRESETS[preset]
    assert settings.pruning.prune_rate == round(pruner.cut() / sum(unit.filters for unit in network.units.values()), 4)


def test_resnet56_with_the_branch_of_a_block_empty_loses_the_whole_branch():
    network = models.build("resnet56(shortcut='pad')")
    kept = keep_all(network)
    kept["stage2.4.conv2"][:] = False
    count = removed(network, kept, 32)
    branch = 2 * (32 * 32 * 9 + 2 * 32)
    assert count.parameters == 853_018 - branch
    assert count.macs == 125_485_696 - 2 * 32 * 32 * 9 * 16 * 16
    assert count.filters == accounting.dense(network, 32).filters - 64


def test_an_empty_first_convolution_leaves_batch_norm_of_nothing():
    network = models.build("resnet20")
    kept = keep_all(network)
    kept["stage1.1.conv1"][:] = False
    count, whole = removed(network, kept, 32), accounting.dense(network, 32)
    weights = 16 * 16 * 9
    assert whole.parameters - count.parameters == weights + 32 + weights
    assert whole.macs - count.macs == 2 * weights * 32 * 32


def test_a_stream_shrinks_where_no_writer_is_left(two_blocks):
    """Channel 0 of the stream is written by block b only, channel 1 by nobody."""
    kept = keep_all(two_blocks)
    kept["stem"][[0, 1]] = False
    kept["a2"][[0, 1]] = False
    kept["b2"][1] = False
    channels = follow(two_blocks, kept)
    assert channels.inputs["a1"].tolist() == channels.inputs["b1"].tolist() == [2, 3, 4, 5]
    # block b writes channel 0 behind the others: the stream grows at its end
    assert channels.inputs["classifier"].tolist() == [2, 3, 4, 5, 0]
    assert channels.filters["b2"].tolist() == [2, 3, 4, 5, 0]
    assert (channels.joints["a"][0], channels.joints["b"][0]) == (4, 5)
    parameters = 4 * (3 * 9 + 2) + 5 * (4 * 9 + 2) + 4 * (5 * 9 + 2) + 5 * (4 * 9 + 2) + 5 * (5 * 9 + 2) + 4 * 5 + 4
    assert removed(two_blocks, kept, 8).parameters == parameters


def test_published_zeros_are_the_weights_of_cut_filters():
    network = models.build("resnet20")
    pruner = Pruner(network, rate=0.5)
    pruner.update(0.5)
    zero = sum(
        unit.weight[~unit.live.bool()].numel()  # whole filters of the convolution
        for unit in network.units.values()
    )
    assert accounting.zeros(network) == (zero, 272_474)


def test_single_weights_count_what_is_not_zero():
    network = models.build("resnet20")
    Pruner(network, prune_type="unstructured", rate=0.9).update(0.9)
    whole, left = accounting.dense(network, 32), accounting.remaining(network, 32)
    weights = sum(unit.weight.numel() for unit in network.all_units.values())
    assert whole.parameters - left.parameters == int(0.9 * weights)
    assert left.macs < 0.3 * whole.macs


def test_counting_leaves_the_network_as_it_was():
    network = models.build("resnet20").train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for unit in network.units.values():
        unit.gate = OutputGate(unit.filters)
    accounting.remaining(network, 32)
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items() if name in before)
    pickle.dumps(network)  # which a hook that was left behind could not be
