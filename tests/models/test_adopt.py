"""A module of PyTorch is adopted with the outputs that it had, or refused by the name of what cannot be, and its place."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from own_modules import Inverted, LongSkip, Mixed, mixed, settled
from promises import unchanged
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

import models
from models import Card
from pruning import accounting
from settings.errors import Refused

pytestmark = pytest.mark.core

IMAGES = torch.zeros(1, 3, 16, 16)
LARGER = torch.zeros(1, 3, 32, 32)


def vgg(norm: bool) -> nn.Module:
    layers = torchvision.models.vgg.make_layers([4, "M", 6, 6, "M"], norm)
    network = torchvision.models.VGG(layers, num_classes=5, init_weights=False)
    network.classifier[0], network.classifier[3] = nn.Linear(6 * 49, 9), nn.Linear(9, 8)
    network.classifier[6] = nn.Linear(8, 5)
    return network


def assert_same_outputs(module: nn.Module, images: torch.Tensor, within: float) -> models.Network:
    module = settled(module)
    with unchanged(module):
        network = models.adopt(module, images)
    x = torch.randn(3, *images.shape[1:], dtype=next(module.parameters()).dtype)
    with torch.no_grad():
        assert (network(x) - module(x)).abs().max() <= within * module(x).abs().max()
    return network


@pytest.mark.parametrize("make", [
    lambda: torchvision.models.resnet18(num_classes=5),
    lambda: ResNet(Bottleneck, [1, 2, 1, 1], num_classes=5, groups=4, width_per_group=8),
    lambda: torchvision.models.mobilenet_v2(num_classes=5, width_mult=0.25),
    lambda: vgg(norm=False),
    lambda: vgg(norm=True),
    Mixed,
    LongSkip,
], ids=["resnet", "resnext", "mobilenet", "vgg", "vgg_bn", "mixed", "long_skip"])  # fmt: skip
def test_outputs_are_those_of_the_module(make):
    torch.manual_seed(1)
    module = make()
    images = IMAGES if isinstance(module, Mixed | LongSkip) else LARGER
    assert_same_outputs(module, images, 1e-5)
    assert_same_outputs(module.double(), images, 1e-12)


def test_weights_are_copies_and_no_bias_is_left_before_batch_norm():
    module = mixed()
    network = models.adopt(module, IMAGES)
    assert network.links_ is not None  # the maker's name is one that a network uses otherwise
    # the bias of the stem and of the shortcut's projection
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in module.parameters()) - 6 - 8
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        for value in module.parameters():
            value.zero_()
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert network.get_submodule("blocks.0.depthwise").norm.eps == 1e-3
    assert network.get_submodule("blocks.0.depthwise").norm.momentum == 0.01


def test_the_wiring_is_that_of_a_network_written_by_hand():
    network = models.adopt(mixed(), IMAGES)
    ties = [link.unit for link in network.links if link.ties]
    joints = {link.joint: (link.unit, link.target) for link in network.links if link.joint}
    assert ties == ["blocks.0.depthwise", "blocks.1.depthwise"]
    assert joints == {
        "blocks.0.joint": ("blocks.0.project", "links_.0"),
        "blocks.1.joint": ("blocks.1.project", "links_.0"),
        "blocks.2.joint": ("blocks.2.conv2", "blocks.2.shortcut.1"),
    }
    assert [network.get_submodule(path).activation for path in joints] == [False, False, True]
    assert network.get_submodule("conv").activation is True  # from behind the pooling
    assert network.get_submodule("classifier.3").dropout.original == 0.25
    assert network.get_submodule("classifier.0").is_linear
    assert network.widths()[network.outputs[0]] == 4
    long = models.adopt(settled(LongSkip()), IMAGES)
    assert [(link.unit, link.source, link.target) for link in long.links][1:5] == [
        (None, "stem", "joint"),
        ("a", "stem", "joint"),
        ("b", "joint", "stem"),
        ("fc", "stem", "fc"),
    ]


def test_it_counts_as_torch_does():
    module = mixed()
    network = models.adopt(module, IMAGES)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        module(IMAGES)
    assert counter.get_total_flops() == 2 * accounting.dense(network, 16).macs


def test_it_trains_as_the_module_does():
    module = mixed()
    network, module = models.adopt(module, IMAGES).double(), module.double()
    module.classifier[2].p = 0.0
    network.get_submodule("classifier.3").dropout.rate.fill_(0.0)
    x, targets = torch.randn(8, 3, 16, 16, dtype=torch.float64), torch.arange(8) % 4
    losses = []
    for each in (module.train(), network.train()):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            loss = F.cross_entropy(each(x), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append((loss.item(), each.eval()(x)))
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-9)
    torch.testing.assert_close(losses[0][1], losses[1][1], rtol=0, atol=1e-8)


def card(**changes) -> Card:
    return Card(
        **{"arch": "away.py:build", "classes": list("abcd"), "image_size": 16, "mean": [1.0] * 3, "std": [9.0] * 3} | changes
    )


def test_a_file_holds_all_that_it_is(tmp_path):
    network = models.adopt(mixed(), IMAGES).to(memory_format=torch.channels_last)
    models.save(tmp_path / "model.pt", network, card())
    loaded = models.load(tmp_path / "model.pt")
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(x), network(x))
    assert loaded.shapes() == network.shapes()
    assert loaded.links == network.links


@pytest.mark.parametrize(("arch", "change", "message"), [
    ("away.py:build", lambda program: None, "has no program"),
    ("away.py:build", lambda program: {**program, "gives": "nobody"}, "gives 'nobody', which no step makes"),
    ("away.py:build", lambda program: {**program, "size": 8}, "is for images of 8 pixels, not of 16"),
    ("away.py:build", lambda program: {**program, "steps": program["steps"][:-1]}, "which no step makes"),
    ("away.py:build", lambda program: with_step(program, 0, do="exec"), "steps[0].do is 'exec', not one of unit"),
    ("away.py:build", lambda program: with_step(program, 1, reads="later"), "reads 'later', which no step before it"),
    ("away.py:build", lambda program: with_step(program, 1, makes="input"), "makes 'input', which is there already"),
    ("away.py:build", lambda program: with_step(program, 1, code="x"), "steps[1] has 'code', which nothing here knows"),
    ("away.py:build", lambda program: with_step(program, 1, unit="links"), "two things that are called 'links'"),
    ("away.py:build", lambda program: with_step(program, 1, unit="links_.0"), "two things that are called 'links_.0'"),
    ("away.py:build", lambda program: with_step(program, 1, unit="links_.0.layer"), "two things that are called"),
    ("away.py:build", lambda program: with_layer(program, 1, filters=11), "blocks.0"),
    ("away.py:build", lambda program: with_layer(program, 1, groups=5), "blocks.0.expand"),
    ("away.py:build", lambda program: with_layer(program, 1, kernel=[1, 0]), "kernel is a list of 2, not two whole numbers"),
])  # fmt: skip
def test_a_program_that_is_none_is_refused(arch, change, message, tmp_path):
    network = models.adopt(mixed(), IMAGES)
    models.save(tmp_path / "model.pt", network, card())
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    state["arch"], program = arch, change(copy.deepcopy(state["shapes"].pop("program")))
    state["shapes"] |= {} if program is None else {"program": program}
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(Refused) as caught:
        models.load(tmp_path / "model.pt")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def with_step(program: dict, place: int, **changes) -> dict:
    program["steps"][place] |= changes
    return program


def with_layer(program: dict, place: int, **changes) -> dict:
    program["steps"][place]["layer"] |= changes
    return program


def test_inverted_blocks_alone_are_no_network():
    with pytest.raises(ValueError, match=r"^it gives \(3, 16, 16\) for an image, not the logits"):
        models.adopt(settled(Inverted(3)), IMAGES)
