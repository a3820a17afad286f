"""What a network here cannot have is refused by its name and its place, in one line."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from own_modules import mixed
from promises import unchanged
from torch import nn
from torch.nn.utils import parametrizations, prune

import models

pytestmark = pytest.mark.core

IMAGES = torch.zeros(1, 3, 16, 16)


class Does(nn.Module):
    """A convolution, then what a function does with this module, its maps and its input, then a classifier."""

    def __init__(self, do, *parts: nn.Module):
        super().__init__()
        self.do, self.conv, self.parts = do, nn.Conv2d(3, 6, 3, padding=1), nn.ModuleList(parts)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        return self.fc(self.do(self, self.conv(x), x).mean((2, 3)))


def first(module, maps, images):
    return module.parts[0](maps)


def branches(module, maps, images):
    return maps if images.sum() > 0 else -maps


def shares(module, maps, images):
    return module.parts[0](module.parts[0](maps))


REFUSED = {
    "concatenation": (lambda m, y, x: torch.cat([y, y], 1)[:, :6], [], "cat in the forward of Does cannot be adopted"),
    "GELU": (first, [nn.GELU()], "GELU at 'parts.0' cannot be adopted: the activations are ReLU and ReLU6"),
    "a function": (lambda m, y, x: F.silu(y), [], "silu in the forward of Does cannot be adopted"),
    "Hardswish": (first, [nn.Hardswish()], "Hardswish at 'parts.0'"),
    "LayerNorm": (first, [nn.LayerNorm([16, 16])], "LayerNorm at 'parts.0' cannot be adopted"),
    "GroupNorm": (first, [nn.GroupNorm(2, 6)], "GroupNorm at 'parts.0' cannot be adopted"),
    "attention": (
        lambda m, y, x: m.parts[0](*[y.flatten(2)] * 3)[0].view(y.shape),
        [nn.MultiheadAttention(256, 2)],
        "MultiheadAttention at 'parts.0' cannot be adopted",
    ),
    "a branch on numbers": (branches, [], "its forward branches on what it reads, in line"),
    "a number read": (lambda m, y, x: y + x.sum().item(), [], "sum in the forward of Does cannot be adopted"),
    "a shared module": (shares, [nn.Conv2d(6, 6, 1)], "Conv2d at 'parts.0' cannot be adopted: it shares weights"),
    "a product": (lambda m, y, x: y * y, [], "mul in the forward of Does cannot be adopted"),
    "a constant": (lambda m, y, x: y + 1, [], "add in the forward of Does cannot be adopted: only two maps"),
    "twice itself": (lambda m, y, x: y + y, [], "add in the forward of Does cannot be adopted: only two maps"),
    "no branch": (
        lambda m, y, x: F.max_pool2d(y, 3, 1, 1) + F.avg_pool2d(y, 3, 1, 1),
        [],
        "add in the forward of Does cannot be adopted: one of both must be what a layer gives",
    ),
    "a depthwise branch": (
        lambda m, y, x: F.max_pool2d(y, 1) + m.parts[0](y),
        [nn.Conv2d(6, 6, 3, padding=1, groups=6)],
        "and no depthwise one",
    ),
    "broadcasting": (lambda m, y, x: y + m.parts[0](y), [nn.Conv2d(6, 1, 1)], "it adds (2, 6, 16, 16) and (2, 1, 16, 16)"),
    "batch norm in front": (
        lambda m, y, x: m.parts[0](F.max_pool2d(y, 2)),
        [nn.BatchNorm2d(6)],
        "BatchNorm2d at 'parts.0' cannot be adopted: it is not behind a convolution",
    ),
    "batch norm without scale": (first, [nn.BatchNorm2d(6, affine=False)], "it has no scale and shift"),
    "a ReLU of pooled maps": (lambda m, y, x: F.relu(F.avg_pool2d(y, 2)), [], "relu in the forward of Does"),
    "a ReLU6 of a sum": (
        lambda m, y, x: F.relu6(F.max_pool2d(y, 1) + m.parts[0](y)),
        [nn.Conv2d(6, 6, 1)],
        "relu6 in the forward of Does cannot be adopted: it is not behind a layer that it alone reads",
    ),
    "padding by reflection": (
        first,
        [nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect")],
        "Conv2d at 'parts.0' cannot be adopted: it is padded by reflect",
    ),
    "uneven padding": (first, [nn.Conv2d(6, 6, 2, padding="same")], "of its padding one side has more"),
    "a transposed convolution": (first, [nn.ConvTranspose2d(6, 6, 2, 2)], "ConvTranspose2d at 'parts.0'"),
    "a functional convolution": (
        lambda m, y, x: F.conv2d(y, m.parts[0].weight),
        [nn.Conv2d(6, 6, 1)],
        "conv2d in the forward of Does cannot be adopted: use the module",
    ),
    "Dropout2d": (first, [nn.Dropout2d(0.5)], "Dropout2d at 'parts.0' cannot be adopted: dropout is of single"),
    "dropout in evaluation": (lambda m, y, x: F.dropout(y, 0.5), [], "it drops numbers in evaluation too"),
    "dropout of pooled maps": (lambda m, y, x: m.parts[0](F.avg_pool2d(y, 2)), [nn.Dropout()], "nor does one layer"),
    "indices": (lambda m, y, x: m.parts[0](y)[0], [nn.MaxPool2d(2, return_indices=True)], "MaxPool2d at 'parts.0'"),
    "another mean": (lambda m, y, x: m.parts[0](y.mean(1, keepdim=True)), [nn.Conv2d(1, 6, 1)], "a mean is of whole maps"),
    "another order": (lambda m, y, x: y.permute(0, 1, 3, 2), [], "permute in the forward of Does cannot be adopted"),
    "weights made of others": (
        first,
        [parametrizations.weight_norm(nn.Conv2d(6, 6, 1))],
        "cannot be adopted",
    ),
    "hooks": (first, [prune.random_unstructured(nn.Conv2d(6, 6, 1), "weight", 0.5)], "it has hooks"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding")  # torch's, of an even kernel
@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_its_name_and_place(name):
    do, parts, message = REFUSED[name]
    module = Does(do, *parts).train()
    with unchanged(module), pytest.raises(ValueError, match=r"adopted|forward") as caught:
        models.adopt(module, IMAGES)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "message"), [
    ("squeezenet1_1", "cat in the forward of 'features.3' (Fire)"),
    ("densenet121", "cat in the forward of 'features.denseblock1.denselayer1'"),
    ("googlenet", "cat in the forward of 'inception3a' (Inception)"),
    ("efficientnet_b0", "SiLU at 'features.0.2'"),
    ("convnext_tiny", "permute in the forward of 'features.0.1' (LayerNorm2d)"),
    ("mobilenet_v3_small", "Hardswish at 'features.0.2'"),
])  # fmt: skip
def test_networks_of_other_kinds_are_refused(name, message):
    options = {"init_weights": False} if name == "googlenet" else {}
    with pytest.raises(ValueError, match="cannot be adopted") as caught:
        models.adopt(getattr(torchvision.models, name)(num_classes=3, **options), torch.zeros(1, 3, 32, 32))
    assert str(caught.value).startswith(message)


class Weightless(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


class TwoInputs(nn.Linear):
    def forward(self, x, y):
        return super().forward(x + y)


class TwoOutputs(nn.Conv2d):
    def forward(self, x):
        y = super().forward(x)
        return y, y


@pytest.mark.parametrize(("module", "example", "message"), [
    (Weightless(), IMAGES, "it has no weights"),
    (TwoInputs(3, 2), IMAGES, "its forward takes other inputs than images alone"),
    (mixed(), torch.zeros(1, 3, 8), "an example is of images"),
    (mixed(), torch.zeros(1, 3, 8, 16), "an example is of images"),
    (mixed(), torch.zeros(1, 1, 16, 16), r"its forward fails on images of shape \(1, 16, 16\)"),
    (nn.Sequential(nn.Conv2d(3, 4, 1)), IMAGES, r"it gives \(4, 16, 16\) for an image, not the logits"),
    (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()), IMAGES, r"it gives \(1024,\) for an image, not the logits"),
    (nn.Sequential(nn.Flatten(), nn.Linear(768, 3), nn.LogSoftmax(1)), IMAGES, "LogSoftmax at '2' .*: end with the logits"),
])  # fmt: skip
def test_what_is_no_classifier_of_images_is_refused(module, example, message):
    with pytest.raises(ValueError, match=message):
        models.adopt(module, example)


def noisy(module, maps, images):
    return nn.functional.dropout(maps, 0.5) if module.training else maps


def test_what_a_forward_does_in_training_alone_is_not_lost():
    for training in (True, False):
        module = Does(noisy).train(training)
        with pytest.raises(ValueError, match="its forward takes other operations in training than in evaluation"):
            models.adopt(module, IMAGES)
        assert module.training == module.conv.training == training


def test_what_is_overwritten_behind_the_back_of_the_trace_is_seen():
    def do(module, maps, images):
        torch.relu_(maps)
        return maps

    with pytest.raises(ValueError, match="does not compute the same: outputs differ"):
        models.adopt(Does(do), IMAGES)
