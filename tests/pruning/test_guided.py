"""These tests carry the widths that pruning found over to other networks, of other depths and families."""

import pytest
import torch
from toys import InGroups, toy

import models
from models.layers import initialise
from pruning import guided
from pruning.gates.weight import Weight
from pruning.guided import fractions, kernel_stages, mean_of_runs, narrowed, patterns, sampled

pytestmark = pytest.mark.core


def kept(network, **counts):
    """All filters of every convolution but for those in `counts`, whose names have _ for a dot."""
    return {name: counts.get(name.replace(".", "_"), unit.filters) for name, unit in network.units.items()}


def widths(shapes, part=""):
    return {name: filters for name, (filters, _) in shapes["units"].items() if part in name}


def test_the_mean_of_a_stage_is_given_to_another_depth():
    """[40, 24, 32] of 64 are 32 in every layer of the stage, of a network with nine such layers."""
    small, large = models.build("resnet20"), models.build("resnet56", classes=100)
    counts = {"stage3_0_conv1": 40, "stage3_1_conv1": 24, "stage3_2_conv1": 32}
    shapes = narrowed(large, fractions(small, kept(small, **counts), 32), 32)
    assert {name: width for name, width in widths(shapes, "conv1").items() if "stage3" in name} == {
        f"stage3.{block}.conv1": 32 for block in range(9)
    }
    assert {*widths(shapes, "stage1").values()} == {16}
    assert widths(shapes, "stage3.0.conv2") == {"stage3.0.conv2": 64}  # the stream is counted apart


def test_a_stage_of_a_chain_is_what_has_one_size_of_maps():
    small, large = models.build("vgg16"), models.build("vgg19")
    third = [name for name, stage in guided.stages(small, 32).items() if stage == (2, False)]
    counts = kept(small) | dict(zip(third, (160, 96, 128), strict=True))
    shapes = narrowed(large, fractions(small, counts, 32), 64)  # twice the pixels are the same stages
    assert [*widths(shapes, "features").values()] == [64] * 2 + [128] * 2 + [128] * 4 + [512] * 8
    assert shapes["units"]["hidden"] == [512, 512]


def test_the_writers_of_a_stream_have_one_width():
    network = models.build("resnet20")
    counts = kept(network, stem=4, stage1_0_conv2=8, stage1_1_conv2=12, stage1_2_conv2=16, stage2_0_projection=16)
    shapes = narrowed(network, fractions(network, counts, 32), 32)
    stream = [shapes["units"][name][0] for name in ("stem", "stage1.0.conv2", "stage1.1.conv2", "stage1.2.conv2")]
    assert stream == [10] * 4
    assert shapes["units"]["stage2.0.conv1"] == [32, 10]
    assert shapes["units"]["stage2.0.projection"] == [28, 10]  # (16 + 32 + 32 + 32) / 4
    assert shapes["joints"] == {}


def test_halves_are_rounded_up_and_a_filter_stays():
    network = models.build("resnet20")
    names = [name for name in network.units if name.startswith("stage1") and name.endswith("conv1")]
    for counts, wanted in (((1, 1, 1), 1), ((5, 5, 6), 5), ((5, 6, 5.5), 6), ((0, 0, 0), 1)):
        shares = fractions(network, kept(network) | dict(zip(names, counts, strict=True)), 32)
        assert shares[0, False] == pytest.approx(sum(counts) / 3 / 16)
        assert narrowed(network, shares, 32)["units"][names[0]][0] == wanted


def test_several_networks_count_alike():
    small, large = models.build("resnet20"), models.build("resnet56")
    one = fractions(small, kept(small) | dict.fromkeys([n for n in small.units if "stage2" in n and "conv1" in n], 8), 32)
    other = fractions(large, kept(large) | dict.fromkeys([n for n in large.units if "stage2" in n and "conv1" in n], 24), 32)
    assert mean_of_runs([one, other])[1, False] == 0.5
    with pytest.raises(ValueError, match="different stages"):
        mean_of_runs([one, fractions(models.build("vgg16"), kept(models.build("vgg16")), 32)])


@pytest.mark.parametrize("name", ["resnet20", "resnet20(shortcut='pad')", "resnet18", "resnet50", "vgg19"])
@pytest.mark.parametrize("rising", [True, False])
def test_a_narrowed_network_trains(name, rising):
    network = models.build(name, classes=7)
    found = {*guided.stages(network, 32).values()}
    shares = {stage: 0.1 + 0.2 * (stage[0] if rising else 3 - min(stage[0], 3)) for stage in found}
    network.reshape(narrowed(network, shares, 32))
    initialise(network)
    assert all(joint.index is None for joint in network.joints.values())
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_what_is_tied_to_channels_follows_them():
    network = toy("depthwise")
    shares = dict.fromkeys(guided.stages(network, 11).values(), 0.5)
    network.reshape(narrowed(network, shares, 11))
    initialise(network)
    assert (network.depth1.groups, network.depth3.groups) == (network.stem.filters, network.project.filters) == (3, 4)
    assert network(torch.randn(2, 3, 11, 11, dtype=torch.float64)).shape == (2, 4)


def masked(name: str, seed: int = 0, **densities: float):
    """A network with masks of single weights: of these stages so much is there, of all others everything."""
    network, generator = models.build(name), torch.Generator().manual_seed(seed)
    for path, unit in network.all_units.items():
        density = densities.get(path.split(".")[0], 1.0)
        unit.gate = Weight(unit.weight.shape)
        unit.gate.set(torch.rand(unit.weight.shape, generator=generator) < density)
    return network


def test_a_pattern_is_the_mean_of_all_kernels_of_a_stage():
    network = masked("resnet20")
    for block in range(3):
        for convolution in (network.stage2[block].conv1, network.stage2[block].conv2):
            mask = torch.zeros(convolution.weight.shape)
            mask[:, :, 1, 1] = 1
            mask[: 8 * (block + 1), :, 0, 2] = 1  # 8, 16 and 24 of 32 filters
            convolution.gate.set(mask)
    found = patterns(network, 32)
    # the first convolution of the stage reads 16 channels, all others 32
    corner = 32 * (8 * 16 + 8 * 32 + 2 * 16 * 32 + 2 * 24 * 32) / (32 * 32 * (16 + 5 * 32))
    assert found[1, 3, 3].tolist() == [[0, 0, pytest.approx(corner)], [0, 1, 0], [0, 0, 0]]
    assert {stage for stage in found if (found[stage] != 1).any()} == {(1, 3, 3)}
    assert {*found} == {(0, 3, 3), (1, 3, 3), (2, 3, 3), (1, 1, 1), (2, 1, 1), (3, 1, 1)}


def test_another_depth_has_exactly_the_mean_pattern():
    found = mean_of_runs([patterns(masked("resnet20", seed, stage1=0.5, stage3=0.1), 32) for seed in range(2)])
    network = models.build("resnet32", classes=7)
    masks = sampled(network, found, 64, seed=3)  # twice the pixels are the same stages
    for name, stage in kernel_stages(network, 32).items():
        mask = masks[name]
        assert mask.shape == network.get_submodule(name).weight.shape
        kernels = mask.shape[:2].numel()
        wanted = (found[stage].flatten() * kernels + 0.5).floor()
        assert torch.equal(mask.reshape(kernels, -1).sum(0), wanted.to(torch.int64))
    # positions are drawn apart: as many kernels have both of two positions as chance says, 0.5 x 0.5 of 256
    first = masks["stage1.1.conv1"].flatten(2)
    assert 30 < int((first[..., 0] & first[..., 1]).sum()) < 98
    again, other = (sampled(network, found, 32, seed)["stage3.4.conv2"] for seed in (3, 4))
    assert torch.equal(again, masks["stage3.4.conv2"])
    assert not torch.equal(again, other)


def test_kernels_of_another_family_are_refused():
    with pytest.raises(ValueError, match="stage 1 has kernels of 1x1, and the pruned networks, of 4 sizes of maps, have none"):
        sampled(models.build("resnext11"), patterns(masked("resnet20"), 32), 32, 0)


def test_another_family_is_refused():
    network, other = models.build("vgg16"), models.build("resnet20")
    shares = fractions(network, kept(network), 32)
    with pytest.raises(ValueError, match=r"3 sizes of maps, 3 of them with residual .* 5 sizes of maps, 0 of them"):
        narrowed(other, shares, 32)
    with pytest.raises(ValueError, match="'grouped' is a convolution in 2 groups"):
        guided.stages(InGroups(), 8)
