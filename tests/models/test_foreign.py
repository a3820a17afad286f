"""These tests map state dicts from elsewhere onto networks here: outputs are the same, and what does not fit is named."""

import re
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import models
from models.foreign import fitted, state_of
from settings.schema import Unfit

TORCHVISION = {
    "resnet18(stem='imagenet')": "resnet18",
    "resnet50(stem='imagenet')": "resnet50",
    "resnext50(stem='imagenet')": "resnext50_32x4d",
    "mobilenetv2(stem='imagenet')": "mobilenet_v2",
    "vgg16(head='imagenet')": "vgg16_bn",
    "vgg16(head='imagenet', norm=False)": "vgg16",
}


class Halved(nn.Module):
    """A shortcut without weights: every second pixel, and zero channels on both sides of the others, or behind them."""

    def __init__(self, before: int, behind: int):
        super().__init__()
        self.zeros = (0, 0, 0, 0, before, behind)

    def forward(self, x):
        return F.pad(x[:, :, ::2, ::2], self.zeros)


class Block(nn.Module):
    """A basic block of He et al., 2016, with the names that CIFAR networks elsewhere have."""

    def __init__(self, inputs: int, filters: int, stride: int, shortcut: str):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, filters, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.shortcut = nn.Sequential()
        if stride == 1 and inputs == filters:
            return
        if shortcut == "projection":
            self.shortcut.append(nn.Conv2d(inputs, filters, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(filters))
        else:
            more = filters - inputs
            self.shortcut = Halved(more // 2, more // 2) if shortcut == "both sides" else Halved(0, more)

    def forward(self, x):
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(branch + self.shortcut(x))


class Elsewhere(nn.Module):
    """A ResNet for 32x32 images: stages of so many basic blocks, of these widths, then the mean and a linear layer."""

    def __init__(self, blocks: int, widths: tuple, shortcut: str, classes: int = 10):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0])
        inputs = widths[0]
        for number, filters in enumerate(widths, start=1):
            stage = [
                Block(filters if block else inputs, filters, 1 if block or number == 1 else 2, shortcut)
                for block in range(blocks)
            ]
            self.add_module(f"layer{number}", nn.Sequential(*stage))
            inputs = filters
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for name, stage in self.named_children():
            x = stage(x) if name.startswith("layer") else x
        return self.linear(x.mean((2, 3)))


class Plain(nn.Module):
    """VGG-16's convolutions, with biases in front of batch norm, and a linear layer."""

    def __init__(self, classes: int = 10):
        super().__init__()
        layers, inputs = [], 3
        for width, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(repeats):
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                inputs = width
            layers.append(nn.MaxPool2d(2))
        self.features, self.classifier = nn.Sequential(*layers), nn.Linear(inputs, classes)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def akamaster(blocks: int = 3) -> Elsewhere:
    return Elsewhere(blocks, (16, 32, 64), "both sides")


def filled(model: nn.Module) -> nn.Module:
    """The model with random weights and statistics, of such a size that outputs neither vanish nor explode."""
    model = model.to_empty(device="cpu")
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            value.fill_(7)
        elif name.endswith("rate"):
            value.fill_(0.1)
        elif name.endswith("running_var") or (value.dim() == 1 and name.endswith("weight")):
            value.uniform_(0.5, 1.5)
        elif value.dim() == 1:
            value.uniform_(-0.2, 0.2)
        else:
            value.uniform_(-1, 1).mul_((6 / value[0].numel()) ** 0.5)
    return model.eval()


def given(arch: str, state: dict, classes: int = 10):
    """The network of this name with the values of a state dict."""
    with torch.device("meta"):
        network = models.build(arch, classes=classes)
    values, others = fitted(network, state)
    assert not others
    network = network.to_empty(device="cpu")
    network.take(values)
    return network.eval()


def check_same(network, model, side: int = 32) -> None:
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        one, other = network(images), model(images)
    assert other.abs().max() > 1e-3
    assert (one - other).abs().max() < 1e-5 * other.abs().max()


@pytest.mark.parametrize("arch", TORCHVISION)
def test_torchvisions_networks_give_the_same_outputs(arch):
    with torch.device("meta"):
        model = torchvision.models.get_model(TORCHVISION[arch])
    check_same(given(arch, filled(model).state_dict(), classes=1000), model, side=64)


@pytest.mark.parametrize(("arch", "model"), [
    ("resnet20(shortcut='pad')", akamaster),
    ("resnet32(shortcut='pad')", lambda: akamaster(5)),
    ("resnet20", lambda: Elsewhere(3, (16, 32, 64), "projection")),
    ("resnet18", lambda: Elsewhere(2, (64, 128, 256, 512), "projection")),
    ("vgg16(head='linear')", Plain),
])  # fmt: skip
def test_cifar_networks_give_the_same_outputs(arch, model):
    model = filled(model())
    check_same(given(arch, model.state_dict()), model)


def test_zero_channels_behind_the_others_stay_there():
    """The names are those of the code of FPGM and SFP, whose shortcuts put zeros behind."""
    model = filled(Elsewhere(3, (16, 32, 64), "behind"))
    words = {"conv1": "conv_a", "bn1": "bn_a", "conv2": "conv_b", "bn2": "bn_b", "linear": "classifier"}

    def renamed(name):
        name = re.sub(r"layer(\d)", r"stage_\1", name)
        owner, part = name.rsplit(".", 1)
        before, _, last = owner.rpartition(".")
        last = {"conv1": "conv_1_3x3", "bn1": "bn_1"}.get(last, words.get(last, last)) if not before else words[last]
        return ".".join(filter(None, (before, last, part)))

    state = {renamed(name): value for name, value in model.state_dict().items()}
    check_same(given("resnet20(shortcut='pad')", state), model)
    odd = {name.replace("conv_a", "first").replace("conv_b", "second"): value for name, value in state.items()}
    with pytest.raises(Unfit, match=r"'stage_1\.0\.first' does not say where shortcuts without weights put zero channels"):
        fitted(models.build("resnet20(shortcut='pad')"), odd)


def test_names_that_are_ours_are_taken_as_they_are():
    network = filled(models.build("resnet20(dropout=0.1)"))
    state = {name: value for name, value in network.state_dict().items() if not name.endswith("rate")}
    upside_down = dict(reversed(state.items()))
    other = models.build("resnet20(dropout=0.1)").eval()
    other.take(fitted(other, upside_down)[0])
    check_same(other, network)
    for name in ("stage1.0.conv1.layer.weight", "stem.norm.running_var"):
        with pytest.raises(Unfit, match=f"it has nothing for '{re.escape(name)}', float32 of shape"):
            fitted(network, {key: value for key, value in state.items() if key != name})


def test_wrappers_and_prefixes_are_taken_off():
    state = filled(akamaster()).state_dict()
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    wrapped = OrderedDict((f"module.{name}", nn.Parameter(value)) for name, value in old.items())
    compiled = {f"_orig_mod.{name}": value for name, value in old.items()}
    contents = [old, wrapped, {"state_dict": wrapped, "best_prec1": 91.7}, {"net": wrapped, "acc": 90, "epoch": 3}]
    for content in (*contents, {"model": old}, {"model_state_dict": compiled}):
        found = state_of(content)
        assert found.keys() == old.keys()
        assert all(torch.equal(found[name], old[name]) and type(found[name]) is torch.Tensor for name in old)
    values, _ = fitted(models.build("resnet20(shortcut='pad')"), old)
    assert values["stem.norm.num_batches_tracked"] == 0
    halves, _ = fitted(models.build("resnet20(shortcut='pad')"), {name: value.half() for name, value in old.items()})
    assert {value.dtype for value in halves.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize(
    "content", [[], {}, {"state_dict": {}}, {"weights": {"a": torch.ones(1)}}, {"epoch": 3}, {3: torch.ones(1)}]
)
def test_what_is_no_state_dict_is_refused(content):
    with pytest.raises(Unfit, match="state dict"):
        state_of(content)


def test_tensors_that_are_more_than_the_file_are_refused():
    for tensor in (torch.ones(1).expand(1000), torch.ones(3, device="meta"), torch.eye(3).to_sparse()):
        with pytest.raises(Unfit, match=r"'a\.weight' is no tensor of numbers"):
            state_of({"a.weight": tensor})


def test_a_classifier_of_other_classes_stays_the_networks_own():
    state = filled(akamaster()).state_dict()
    network = models.build("resnet20(shortcut='pad')", classes=4)
    before = network.classifier.layer.weight.clone()
    values, others = fitted(network, state)
    assert others == {"classifier": 10}
    network.take(values)
    assert torch.equal(network.classifier.layer.weight, before)
    assert torch.equal(network.stem.layer.weight, state["conv1.weight"])
    own = filled(models.build("resnet20")).state_dict()
    assert fitted(models.build("resnet20", classes=4), own)[1] == {"classifier": 10}


def changed(**changes):
    """akamaster's state dict with some tensors changed by a function, or, with None, left out."""
    state = filled(akamaster()).state_dict()
    for name, change in changes.items():
        name = name.replace("__", ".")
        if change is None:
            del state[name]
        else:
            state[name] = change(state.get(name))
    return state


@pytest.mark.parametrize(("state", "message"), [
    (lambda: changed(extra__weight=lambda _: torch.ones(3, 4)),
     r"'extra\.weight', float32 of shape \(3, 4\), has no counterpart in the network"),
    (lambda: changed(scale=lambda _: torch.ones(3)), r"'scale' is no part of a convolution, a linear layer or a batch norm"),
    (lambda: changed(layer1__0__conv1__bias=lambda _: torch.ones(3)),
     r"'layer1\.0\.conv1\.bias', float32 of shape \(3,\), has no counterpart in 'stage1\.0\.conv1'"),
    (lambda: changed(linear__extra=lambda _: torch.ones(3)), r"'linear\.extra' is no part of"),
    (lambda: changed(layer2__1__conv2__weight=None),
     r"'layer2\.1\.bn2' is a batch norm that stands behind no convolution or linear layer"),
    (lambda: changed(linear__bias=None), r"'linear' has nothing for 'classifier\.layer\.bias', float32 of shape \(10,\)"),
    (lambda: changed(layer1__0__bn1__running_var=None),
     r"it has nothing for 'layer1\.0\.bn1\.running_var', and has 'layer1\.0\.bn1\.weight'"),
    (lambda: changed(layer2__0__bn1__weight=None), r"it has nothing for 'layer2\.0\.bn1\.weight', and has"),
    (lambda: changed(linear__weight=lambda value: value.T),
     r"'linear\.weight' is float32 of shape \(64, 10\), and 'classifier\.layer\.weight' float32 of shape"),
    (lambda: changed(layer2__0__conv1__weight=lambda value: value.transpose(0, 1)),
     r"'layer2\.0\.conv1\.weight' is float32 of shape \(16, 32, 3, 3\), and 'stage2\.0\.conv1\.layer\.weight' float32 of shape"),
    (lambda: changed(conv1__weight=lambda value: value.int()), r"'stem\.layer\.weight' is int32 .*: weights are floating-point"),
    (lambda: filled(akamaster(5)).state_dict(), r"'layer1\.3\.conv1\.weight' is float32 of shape \(16, 16, 3, 3\), and"),
    (lambda: filled(Elsewhere(3, (16, 32, 64), "projection")).state_dict(),
     r"'layer2\.0\.shortcut\.0\.weight', float32 of shape \(32, 16, 1, 1\), has no counterpart in the network"),
    (lambda: filled(Plain()).state_dict(), r"'features\.0\.weight' is float32 of shape \(64, 3, 3, 3\), and 'stem\.layer"),
    (lambda: filled(torchvision.models.resnet18()).state_dict(), r"'conv1\.weight' is float32 of shape \(64, 3, 7, 7\), and"),
])  # fmt: skip
def test_the_first_difference_is_named(state, message):
    with pytest.raises(Unfit, match=message) as caught:
        fitted(models.build("resnet20(shortcut='pad')"), state())
    assert "\n" not in str(caught.value)


def test_a_network_without_the_projections_of_this_one_is_refused():
    with pytest.raises(Unfit, match=r"it has nothing for 'stage2\.0\.projection', float32 of shape \(32, 16, 1, 1\)"):
        fitted(models.build("resnet20"), filled(akamaster()).state_dict())


def test_equal_shapes_in_another_order_are_refused():
    """Sorted by name, layer1.10 would stand before layer1.2: same shapes, other layers."""
    state = filled(Elsewhere(18, (16, 32, 64), "projection")).state_dict()
    blocks = sorted((name for name in state if name.startswith("layer1.")), key=lambda name: name.split(".")[1])
    first = [name for name in state if not name.startswith("layer")][:6]
    names = dict.fromkeys([*first, *blocks, *state])
    with pytest.raises(Unfit, match=r"'layer1\.17\.\w+' stands before 'layer1\.2\.conv1': the tensors are not in the network's"):
        fitted(models.build("resnet110"), {name: state[name] for name in names})


def test_of_a_detector_what_names_boxes_is_its_own_and_what_places_them_the_files():
    network, theirs = (models.build("ssd300_vgg16(width=0.03)", classes=classes) for classes in (3, 7))
    values, others = fitted(network, theirs.state_dict())
    assert others == {f"classes{head}": boxes * 8 for head, boxes in enumerate((4, 6, 6, 6, 4, 4), start=1)}
    own, known = network.state_dict(), theirs.state_dict()
    for name, value in values.items():
        assert torch.equal(value, (own if name.startswith("classes") else known)[name]), name
    more = theirs.state_dict()
    more["classes2.layer.weight"], more["classes2.layer.bias"] = torch.zeros(54, 30, 3, 3), torch.zeros(54)
    with pytest.raises(Unfit, match=r"'classes\d\.layer\.weight' is float32 of shape"):
        fitted(network, more)
