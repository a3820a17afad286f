"""These tests hold networks against exact sizes from the literature, and the declared wiring against what is executed."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import models
from pruning import OutputGate, accounting
from pruning.channels import follow, needed
from settings.meaning import task_of
from settings.registry import NETWORKS

# parameters with 10 classes
PARAMETERS = {
    "resnet18": 11_173_962,
    "resnet50": 23_520_842,
    "resnet56": 855_770,
    "resnet56(shortcut='pad')": 853_018,
    "resnet110(shortcut='pad')": 1_727_962,
    "vgg16": 14_987_722,
}
MACS = {"resnet56(shortcut='pad')": 125_485_696, "resnet110(shortcut='pad')": 252_887_680, "vgg16": 313_463_808}
SMALL = ["resnet20", "resnet20(shortcut='pad')", "resnet18", "resnet50", "vgg16"]


@pytest.mark.core
@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    network = models.build(name)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]
    assert accounting.dense(network, 32).parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", MACS)
def test_macs(name):
    assert accounting.dense(models.build(name), 32).macs == MACS[name]


@pytest.mark.parametrize("name", [name for name, entry in NETWORKS.entries.items() if task_of(entry) == "classification"])
def test_every_network_counts_what_torch_counts(name):
    with torch.device("meta"):
        network = models.build(name, classes=7).eval()
    with FlopCounterMode(display=False) as counter:
        out = network(torch.empty(1, 3, 32, 32, device="meta"))
    assert out.shape == (1, 7)
    count = accounting.dense(network, 32)
    assert 2 * count.macs == counter.get_total_flops()
    assert count.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert count.filters == sum(unit.filters for unit in network.units.values())


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("rate", [0.3, 0.9])
def test_the_wiring_says_which_channels_arrive(name, rate):
    """Random masks: every channel that the wiring calls gone is zero at the consumer, every other one is not."""
    torch.manual_seed(0)
    network = models.build(name).eval()
    arrived = {}
    for unit in network.units.values():
        unit.gate = OutputGate(unit.filters)
        unit.gate.set(torch.rand(unit.filters) >= rate)
    for path, unit in network.all_units.items():
        if unit.norm is not None:
            # no channel is zero by itself: the bias outweighs everything that the ReLU could cut
            torch.nn.init.constant_(unit.norm.bias, 10.0)
            torch.nn.init.constant_(unit.norm.weight, 1e-3)
        unit.register_forward_pre_hook(lambda _, x, path=path: arrived.update({path: x[0].detach()}))
    network(torch.rand(2, 3, 32, 32) + 0.1)
    kept = accounting.filter_masks(network)
    wanted = follow(network, kept).inputs
    assert set(wanted) == set(arrived)
    for path in needed(network, kept):
        got = arrived[path].transpose(0, 1).flatten(1).any(1)
        assert torch.equal(got.nonzero().flatten(), wanted[path].sort().values), path


@pytest.mark.parametrize("name", SMALL)
def test_the_wiring_names_every_unit_once_in_order(name):
    network = models.build(name)
    called = []
    for path, module in network.named_modules():
        if isinstance(module, models.Unit):
            module.register_forward_hook(lambda *_, path=path: called.append(path))
    network(torch.zeros(2, 3, 32, 32))
    # a projection may run before or after its branch
    assert sorted(called) == sorted(network.all_units)
    assert network.links[0].source == "input"
    assert network.links[-1].target == "output"


def test_initialisation_is_that_of_he():
    torch.manual_seed(0)
    network = models.build("resnet56")
    means = [network.get_submodule(f"stage{stage}.4.conv1").weight.abs().mean().item() for stage in (1, 2, 3)]
    assert means == pytest.approx([0.094, 0.066, 0.047], rel=0.04)
    assert (network.stem.norm.weight == 1).all()
    assert (network.classifier.layer.bias == 0).all()


def test_larger_images_pass_through_every_family():
    for name in ("resnet20", "resnet18", "vgg16"):
        assert models.build(name, classes=3).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match="did you mean 'resnet50'"):
        models.build("resnt50")


def test_lenets_have_the_published_sizes_and_read_maps_as_linear_layers():
    for name, parameters in (("lenet300", 266_610), ("lenet5", 431_080)):
        network = models.build(name, channels=1, size=28)
        assert sum(value.numel() for value in network.parameters()) == parameters
        first = network.linear[0]
        assert first.is_linear
        assert first not in network.units.values()
        assert abs(first.weight.std().item() / (2 / first.weight[0].numel()) ** 0.5 - 1) < 0.05
    images = torch.randn(2, 1, 28, 28)
    hidden = models.build("lenet300", channels=1, size=28).linear[0]
    wanted = torch.nn.functional.linear(images.flatten(1), hidden.weight.flatten(1), hidden.layer.bias).relu()
    assert torch.allclose(hidden(images).flatten(1), wanted, atol=1e-5)
