"""These tests prune, count and cut networks with depthwise, dilated and grouped convolutions, and with several outputs."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from toys import TOYS, InGroups, Separable, images_for, outputs_of, toy

import models
from deploy.folding import folded
from models import Network, Unit
from models.layers import conv_unit
from pruning import OutputGate, Pruner, WeightMask, accounting
from pruning.context import Context, lift
from pruning.granularities import Structured
from pruning.groups import Decisions
from pruning.removal import Removal
from settings.registry import CRITERIA

RESIDUAL = ["free", "grouped"]


def cut_at_random(network, rate, residual, seed=0, dead=(), mask=OutputGate):
    """Masks on all decisions; `dead` layers, by their units, lose all filters."""
    generator = torch.Generator().manual_seed(seed)
    decisions = Decisions(network, list(network.units), residual)
    scores = {name: torch.rand(unit.filters, generator=generator) for name, unit in network.units.items()}
    keep = {layer: score >= rate for layer, score in decisions.merge(scores).items()}
    for layer, members in decisions.layers.items():
        if {*members} & {*dead}:
            keep[layer][:] = False
    for name, kept in decisions.spread(keep, scores).items():
        unit = network.get_submodule(name)
        unit.gate = mask(unit.filters) if mask is OutputGate else mask((unit.filters,))
        unit.gate.set(kept)
    return network.double()


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("residual", RESIDUAL)
@pytest.mark.parametrize(("rate", "dead"), [(0.0, ()), (0.3, ()), (0.6, ()), (0.9, ()), (0.4, ("stem",)), (0.4, ("expand",))])
@torch.no_grad()
def test_removal_is_exact_and_counted_beforehand(name, residual, rate, dead):
    alive = 0
    for seed in range(4):
        network = cut_at_random(toy(name, seed), rate, residual, seed, dead)
        smaller, x = Removal(network).compact(), images_for(network)
        wanted = outputs_of(network(x))
        for form in (smaller, folded(smaller), folded(smaller, 4), folded(smaller, 16)):
            for got, masked in zip(outputs_of(form(x)), wanted, strict=True):
                assert got.shape == masked.shape
                assert (got - masked).abs().max() <= 1e-12
        pixels = accounting.positions(smaller, 11)
        count = accounting.remaining(network, 11)
        assert accounting.count(smaller, pixels) == count == Structured.count(network, accounting.positions(network, 11))
        alive += not torch.allclose(wanted[-1][0], wanted[-1][1])
        # a brute force: what torch counts, and what the smaller network holds
        assert count.parameters == sum(parameter.numel() for parameter in smaller.parameters())
        with FlopCounterMode(display=False) as counter:
            smaller(x[:1])
        assert counter.get_total_flops() == 2 * count.macs
    assert alive > 0 or rate > 0.3  # the images matter still


@pytest.mark.parametrize("name", TOYS)
def test_training_goes_on_as_if_masked(name):
    network = cut_at_random(toy(name), 0.4, "free").train()
    removal = Removal(network)
    smaller, x = removal.compact().train(), images_for(network, 8)
    for model in (network, smaller):
        sum(output.square().mean() for output in outputs_of(model(x))).backward()
    parameters = dict(network.named_parameters())
    for key, parameter in smaller.named_parameters():
        if parameter.numel():
            assert (parameter.grad - removal.cut(key, parameters[key].grad)).abs().max() <= 1e-12, key


@pytest.mark.parametrize("name", TOYS)
def test_a_smaller_network_is_rebuilt_from_its_shapes(name):
    network = cut_at_random(toy(name), 0.3, "free")
    smaller, x = Removal(network).compact(), images_for(network)
    again = TOYS[name]().double().eval()
    again.reshape(smaller.shapes())
    again.load_state_dict(smaller.state_dict())
    again.to(memory_format=torch.channels_last)
    with torch.no_grad():
        for got, wanted in zip(outputs_of(again(x)), outputs_of(smaller(x)), strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    ("name", "residual"), [(name, way) for name in TOYS for way in RESIDUAL if (name, way) != ("dilated", "grouped")]
)
@pytest.mark.parametrize("budget", ["macs", "parameters"])
def test_budgets_are_met(name, residual, budget):
    network = toy(name)
    Pruner(network, rate=0.5, budget=budget, residual=residual, image_size=11).update(0.5)
    left = getattr(accounting.remaining(network, 11), budget) / getattr(accounting.dense(network, 11), budget)
    assert 0.3 < left <= 0.5
    assert Removal(network).exact


@pytest.mark.parametrize("residual", RESIDUAL)
def test_a_filter_and_the_channel_it_is_tied_to_are_one_decision(residual):
    network = toy("depthwise")
    layers = Decisions(network, list(network.units), residual).layers
    together = [{"stem", "depth1"}, {"expand", "depth2"}, {"point1", "project", "depth3"}]
    assert [{*members} for members in layers.values()] == [together[0], together[2], together[1]]
    assert list(layers) == (["stem", "point1", "expand"] if residual == "free" else ["stem", "stream", "expand"])
    # nothing is tied to the stream: its writers are apart where branches write by index
    inverted = toy("inverted")
    layers = Decisions(inverted, list(inverted.units), residual).layers
    assert (["point1"] in layers.values()) == (residual == "free")


def test_a_tied_filter_without_its_channel_is_refused():
    network = cut_at_random(toy("depthwise"), 0.0, "free")
    network.stem.gate.set(torch.tensor([0, 1, 1, 1, 1, 1]))
    with pytest.raises(ValueError, match="'depth1': filter c reads channel c only, and so both stay or both go"):
        Removal(network)
    with pytest.raises(ValueError, match="'depth1'"):
        accounting.remaining(network, 11)


@torch.no_grad()
def test_a_channel_goes_with_the_only_filter_that_reads_it():
    network = cut_at_random(toy("depthwise"), 0.0, "free")
    network.depth1.gate.set(torch.tensor([0, 1, 1, 1, 1, 1]))
    smaller, x = Removal(network).compact(), images_for(network)
    assert (smaller.stem.filters, smaller.depth1.filters) == (5, 5)
    assert (smaller(x) - network(x)).abs().max() <= 1e-12


@torch.no_grad()
def test_constants_of_the_published_placement_reach_depthwise_readers():
    """Without padding a constant is one everywhere, so that the fold is exact."""
    network = toy("inverted")
    for unit in network.units.values():
        unit.layer.weight = nn.Parameter(unit.layer.weight[:, :, :1, :1].clone())
        unit.layer.kernel_size, unit.layer.padding, unit.layer.dilation = (1, 1), (0, 0), (1, 1)
    cut_at_random(network, 0.4, "free", mask=WeightMask)
    removal, x = Removal(network), images_for(network)
    assert not removal.exact
    assert (removal.compact()(x) - network(x)).abs().max() <= 1e-12


def test_the_filters_of_outputs_and_what_is_tied_to_the_images_stay():
    assert list(toy("two outputs").units) == ["stem", "deep1", "deep2", "scale"]

    class Fixed(Network):
        """The images go through a depthwise convolution; a copied node and a tied one are outputs."""

        outputs = ("copy", "tied")

        def __init__(self):
            super().__init__()
            self.first, self.second = conv_unit(3, 3, 3, groups=3), conv_unit(3, 4, 3)
            self.third, self.fourth, self.fifth = conv_unit(4, 5, 3), conv_unit(5, 5, 3, groups=5), conv_unit(4, 4, 3)
            self.wire("first", "input", "first", ties="channel")
            self.wire("second", "first", "second")
            self.wire(None, "second", "copy")
            self.wire("fifth", "second", "fifth")
            self.wire("third", "fifth", "third")
            self.wire("fourth", "third", "tied", ties="channel")

    assert list(Fixed().units) == ["fifth"]


def test_convolutions_in_groups_are_refused_by_name_before_anything_is_cut():
    network = InGroups().eval()
    message = "'grouped' is a convolution in 2 groups, of which only whole ones leave"
    shared = copy.deepcopy(network)
    shared.beside = conv_unit(6, 4, 1)
    shared.wire("beside", "stem", "beside")  # so that what a group reads is read elsewhere too
    with pytest.raises(ValueError, match=f"{message}, with a layer before it that nothing else reads"):
        Pruner(shared, rate=0.5)
    assert all(unit.gate is None for unit in shared.units.values())
    assert accounting.remaining(network, 11) == accounting.dense(network, 11)
    for name in ("stem", "grouped"):
        masked = copy.deepcopy(network)
        unit = masked.get_submodule(name)
        unit.gate = OutputGate(unit.filters)
        unit.gate.set(torch.arange(unit.filters) > 0)
        with pytest.raises(ValueError, match=message):
            Removal(masked)
    # single weights and kernels of it may go
    Pruner(network, prune_type="kernels", rate=0.5).update(0.5)
    assert int(network.grouped.gate.mask.numel()) == 8 * 3


@torch.no_grad()
def test_a_network_in_groups_is_folded_and_filled_up_around_them():
    network, x = InGroups().double().eval(), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    for align in (None, 4):
        assert (folded(network, align)(x) - network(x)).abs().max() <= 1e-12


def test_ties_that_are_none_are_refused():
    network = Network()
    network.plain, network.deep = conv_unit(4, 4, 3), conv_unit(4, 4, 3, groups=4)
    with pytest.raises(ValueError, match="'plain' ties filter c to channel c"):
        network.wire("plain", "input", "plain", ties="channel")
    with pytest.raises(ValueError, match="there is only 'channel'"):
        network.wire("deep", "input", "deep", ties="filter")
    with pytest.raises(ValueError, match="cannot be the last one of a residual branch"):
        network.wire("deep", "input", "deep", joint="joint", ties="channel")


@pytest.mark.parametrize("moving", [True, False])
def test_a_gate_has_the_gradients_of_the_layer_s_geometry(moving):
    """Straight through behind a dilated depthwise convolution: against mask * conv, its mask put on by hand."""
    torch.manual_seed(0)
    unit = conv_unit(6, 6, 3, stride=2, dilation=2, groups=6, activation=False).double()
    x, mask = torch.randn(2, 6, 19, 19, dtype=torch.float64, requires_grad=True), torch.tensor([1, 0, 1, 1, 0, 1.0]).double()
    upstream = torch.randn(2, 6, 10, 10, dtype=torch.float64)
    y = unit.norm(F.conv2d(x, unit.weight, None, 2, 2, 2, 6)) * mask.view(-1, 1, 1)
    wanted_x, wanted = torch.autograd.grad((y * upstream).sum(), (x, unit.layer.weight))
    unit.gate = OutputGate(6).double()
    unit.gate.set(mask)
    unit.gate.straight_through = moving
    out = unit(x)
    assert out.shape == y.shape
    got_x, got = torch.autograd.grad((out * upstream).sum(), (x, unit.layer.weight))
    torch.testing.assert_close(out, y, rtol=0, atol=1e-12)
    torch.testing.assert_close(got_x, wanted_x, rtol=0, atol=1e-12)
    torch.testing.assert_close(got[mask > 0], wanted[mask > 0], rtol=0, atol=1e-12)
    assert (got[mask == 0].flatten(1).norm(dim=1) > 0).all() == moving


@pytest.mark.parametrize("options", [{"dilation": 2}, {"dilation": (2, 3), "stride": (1, 2)}, {"groups": 2, "padding": 1}])
def test_a_unit_is_its_layer(options):
    """Every number that the layer has is used, also where there is nothing to multiply."""
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, **{"padding": 1, **options})
    unit, x = Unit(layer, norm=False, activation=False), torch.randn(2, 4, 19, 19)
    torch.testing.assert_close(unit(x), layer(x))
    bare = Unit(nn.Conv2d(4, 6, 3, bias=False, **{"padding": 1, **options}), norm=False)
    assert bare.multiply(x, bare.weight[:0]).shape[2:] == layer(x).shape[2:]
    gated = copy.deepcopy(unit)
    gated.gate = OutputGate(6)
    gated.gate.straight_through = True
    torch.testing.assert_close(gated(x), layer(x))


def test_a_dilated_convolution_keeps_the_size():
    unit = conv_unit(3, 4, 3, dilation=5)
    assert unit(torch.randn(2, 3, 19, 19)).shape == (2, 4, 19, 19)
    with pytest.raises(ValueError, match="padded with a number of zeros"):
        Unit(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"))


def linearised(network):
    """A copy with absolute weights and neither batch norm nor ReLU."""
    network = copy.deepcopy(network)
    for unit in network.all_units.values():
        unit.layer.weight.data.abs_()
        unit.norm, unit.activation = None, False
    for joint in network.joints.values():
        joint.forward = lambda branch, stream: branch + F.pad(stream, (0, 0, 0, 0, 0, branch.shape[1] - stream.shape[1]))
    return network


@pytest.mark.parametrize("name", TOYS)
def test_importance_goes_back_through_any_wiring(name):
    """Against autograd: NISP(last='equal') is the gradient of the outputs' summed inputs for the absolute weights."""
    network = toy(name)
    x = images_for(network)
    context = Context(network, Structured.groups, lambda: iter([(x, torch.zeros(3, dtype=torch.int64))]), 0)
    scores = lift(CRITERIA.get("NISP(last='equal')"))(network.units, context)
    linear, outputs, read = linearised(network), {}, []
    for path, unit in linear.all_units.items():
        unit.register_forward_hook(lambda _, __, y, path=path: outputs.update({path: y}))
    for link in linear.links:
        if link.target in linear.outputs:
            # a channel that a convolution reads counts by its mean, a pooled one as it is
            linear.get_submodule(link.unit).register_forward_pre_hook(
                lambda _, x: read.append(x[0].mean((2, 3)) if x[0].dim() == 4 else x[0])
            )
    linear(x[:1])
    gradients = torch.autograd.grad(sum(part.sum() for part in read), [outputs[path] for path in network.units])
    for path, gradient in zip(network.units, gradients, strict=True):
        torch.testing.assert_close(scores[path], gradient[0].sum((1, 2)), msg=lambda m, path=path: f"{path}: {m}")


@pytest.mark.parametrize("name", ["depthwise", "two outputs"])
def test_weights_that_read_a_tied_channel_are_those_of_its_filter(name):
    network = toy(name)
    tied = {"depthwise": ("stem", "depth1"), "two outputs": ("stem", "scale")}[name]
    for unit in network.all_units.values():
        unit.layer.weight.data.fill_(1.0)
    with torch.no_grad():
        network.get_submodule(tied[1]).layer.weight[2] = 0.0
    context = Context(network, Structured.groups, None, 0)
    scores = lift(CRITERIA.get("zero_fraction(threshold=0.5)"))(network.units, context)
    readers = [0.0, 0.0, 1.0] if name == "depthwise" else [0.0, 0.0, 0.0]  # of a scale those count that read what it scales
    assert scores[tied[0]].tolist()[:3] == pytest.approx([1 - share / 2 for share in readers])


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("arch", ["resnet20(shortcut='pad')", "resnet18", "vgg16"])
def test_images_of_any_number_of_channels(arch, channels, tmp_path):
    network = models.build(arch, classes=3, channels=channels).eval()
    assert network.input_channels == channels
    assert network.widths()["input"] == channels
    Pruner(network, rate=0.6).update(0.6)
    smaller, x = Removal(network).compact(), torch.randn(2, channels, 32, 32)
    card = models.Card(arch, ["a", "b", "c"], 32, [1.0] * channels, [2.0] * channels)
    models.save(tmp_path / "m.pt", smaller, card)
    again = models.load(tmp_path / "m.pt")
    assert again.card.mean == [1.0] * channels
    with torch.no_grad():
        assert torch.equal(again(x), smaller(x))


def test_a_dead_stem_does_not_change_the_number_of_channels():
    network = Separable(channels=2).eval()
    for unit in network.units.values():
        unit.gate = OutputGate(unit.filters)
        unit.gate.set(torch.zeros(unit.filters))
    smaller = Removal(network).compact()
    assert smaller.stem.weight.shape[:2] == (0, 0)
    assert smaller.input_channels == 2
    assert accounting.dense(smaller, 11).macs == 0
