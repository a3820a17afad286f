"""These tests hold the networks for large images against torchvision's, and removal in front of VGG's large head."""

import re

import pytest
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

import models
from deploy.folding import folded
from models.foreign import torchvision_name
from models.pooling import Averaged
from pruning import OutputGate, accounting
from pruning.removal import Removal
from settings.registry import NETWORKS

SAME = {
    "resnet18(stem='imagenet')": "resnet18",
    "resnet34(stem='imagenet')": "resnet34",
    "resnet50(stem='imagenet')": "resnet50",
    "resnet101(stem='imagenet')": "resnet101",
    "resnet152(stem='imagenet')": "resnet152",
    "resnext50(stem='imagenet')": "resnext50_32x4d",
    "vgg16(head='imagenet')": "vgg16_bn",
    "vgg16(head='imagenet', norm=False)": "vgg16",
    "vgg19(head='imagenet')": "vgg19_bn",
    "vgg19(head='imagenet', norm=False)": "vgg19",
    "mobilenetv2(stem='imagenet')": "mobilenet_v2",
}
HEAD = "vgg16(head='imagenet', norm={}, widen=0.05)"


@pytest.mark.parametrize("arch", SAME)
def test_parameters_and_macs_are_torchvisions(arch):
    theirs = torchvision.models.get_model_weights(SAME[arch]).DEFAULT.meta
    with torch.device("meta"):
        network = models.build(arch, classes=1000, size=224).eval()
        count = accounting.dense(network, 224)
        other = torchvision.models.get_model(SAME[arch]).eval()
    assert count.parameters == theirs["num_params"] == sum(parameter.numel() for parameter in other.parameters())
    assert round(count.macs / 1e9, 3) == theirs["_ops"]
    flops = []
    for model in (network, other):
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 224, 224, device="meta"))
        flops.append(counter.get_total_flops())
    assert flops == [2 * count.macs] * 2


def test_mobilenet_has_the_papers_size():
    """Table 8 of Howard et al., 2017: 4.2 million parameters, 569 million mult-adds."""
    with torch.device("meta"):
        count = accounting.dense(models.build("mobilenet(stem='imagenet')", classes=1000), 224)
    assert (round(count.parameters / 1e6, 1), round(count.macs / 1e6)) == (4.2, 569)


def test_torchvision_has_names_for_these_alone():
    assert {arch: torchvision_name(arch) for arch in SAME} == SAME
    others = ["resnet18", "vgg16", "vgg16(head='linear')", "vgg16(head='imagenet', widen=0.5)", "mobilenetv2", "resnet20"]
    others += ["mobilenetv2(stem='imagenet', width=0.5)", "mobilenet(stem='imagenet')"]
    assert {torchvision_name(arch) for arch in others} == {None}


@pytest.mark.parametrize(("arch", "message"), [
    ("resnet18(stem='image')", "option 'stem' of network 'resnet18' is one of 'cifar', 'imagenet', not 'image'"),
    ("vgg16(head='none')", "option 'head' of network 'vgg16' is one of 'cifar', 'linear', 'imagenet', not 'none'"),
    ("vgg16(norm=False)", "option 'norm' of network 'vgg16' has no effect without head='imagenet'"),
    ("resnet20(stem='imagenet')", "network 'resnet20' has no option 'stem': choose from channels, "),
])  # fmt: skip
def test_other_words_are_refused(arch, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        NETWORKS.check(arch)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("side", [32, 64, 224])
def test_removal_in_front_of_a_head_that_reads_a_map_is_exact(norm, side):
    torch.manual_seed(0)
    network = models.build(HEAD.format(norm), classes=5).double().eval()
    for unit in network.units.values():
        torch.nn.init.uniform_(unit.layer.bias, -0.5, 0.5)
        unit.gate = OutputGate(unit.filters)
        unit.gate.set(torch.rand(unit.filters) < 0.6)
    images = torch.randn(2, 3, side, side, dtype=torch.float64)
    wanted, removal = network(images), Removal(network)
    smaller = removal.compact().eval()
    left = sum(parameter.numel() for parameter in smaller.parameters())
    assert removal.exact
    assert accounting.remaining(network, side).parameters == left < 0.8 * accounting.dense(network, side).parameters
    assert smaller.hidden1.weight.shape[1] == int(network.features[-2].live.sum())
    torch.testing.assert_close(smaller(images), wanted)
    torch.testing.assert_close(folded(smaller)(images), wanted)


def test_a_last_convolution_without_filters_leaves_zeros_to_the_head():
    network = models.build(HEAD.format(False), classes=5).eval()
    last = network.features[-2]
    torch.nn.init.normal_(network.hidden1.layer.bias)
    last.gate = OutputGate(last.filters)
    last.gate.set(torch.zeros(last.filters))
    images = torch.randn(2, 3, 32, 32)
    wanted = network(images)
    torch.testing.assert_close(Removal(network).compact().eval()(images), wanted)
    torch.testing.assert_close(wanted[0], wanted[1])


def test_maps_are_averaged_as_torch_does():
    average = Averaged(7)
    for side in (1, 2, 7, 14, 15):
        x = torch.randn(2, 3, side, side)
        torch.testing.assert_close(average(x), torch.nn.AdaptiveAvgPool2d(7)(x))
    assert average(torch.empty(2, 0, 3, 3)).shape == (2, 0, 7, 7)


def test_dropout_stands_behind_both_hidden_layers():
    network = models.build("vgg16(head='imagenet', dropout=0.5, widen=0.05)")
    assert [unit.dropout is not None for unit in network.all_units.values()][-3:] == [True, True, False]
    linear = models.build("vgg16(head='linear', dropout=0.5)")
    assert linear.classifier.drops_inputs
    assert list(linear.all_units)[-2:] == ["features.16", "classifier"]
