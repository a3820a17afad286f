"""What is watched of a network is found by its wiring: the ends of stages, the last map, and what the classifier reads."""

import copy
from functools import cache
from itertools import product

import pytest
import torch
from promises import unchanged
from torch import nn
from toys import TwoHeads

import models
from models.seen import Watch, pairs, stage_ends
from settings.meaning import task_of
from settings.registry import NETWORKS

pytestmark = pytest.mark.core

SHALLOW = ["resnet20", "resnet56", "resnet20(shortcut='pad', widen=0.5)", "resnet18", "resnet50", "resnext11", "vgg16", "lenet5"]
SHALLOW += ["mobilenet(width=0.25)", "mobilenetv2(width=0.25)"]
# at 32 pixels: the sides of the maps at the ends of stages
SIDES = {"resnet20": [32, 16, 8], "resnet18": [32, 16, 8, 4], "resnet50": [32, 16, 8, 4], "resnext11": [32, 16, 8]}
SIDES |= {"vgg16": [32, 16, 8, 4, 2], "lenet5": [28, 10], "lenet300": []}


class Pooled(nn.Module):
    """A stem, pooling, and a block that adds to what that gives."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.stem, self.block, self.classifier = nn.Conv2d(3, 4, 3, padding=1), block, nn.Linear(4, 5)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.stem(x), 2)
        return self.classifier((x + self.block(x)).mean((2, 3)))


@cache
def ends(name: str, side: int = 32) -> list:
    with torch.device("meta"):
        return stage_ends(models.build(name, size=32), side)


@pytest.mark.parametrize("name", SIDES)
def test_stages_are_those_of_one_size(name):
    assert [end.side for end in ends(name)] == SIDES[name]


def test_a_stage_ends_at_its_stream():
    assert [end.node for end in ends("resnet50")] == ["stage1", "stage2", "stage3", "stage4"]
    assert [end.node for end in ends("resnet20(shortcut='pad')")] == ["stage1", "stage2", "stage3"]
    assert [end.node for end in ends("vgg16")][:2] == ["features.1", "features.4"]


@pytest.mark.parametrize(("student", "teacher"), list(product(SHALLOW, SHALLOW)))
def test_any_two_networks_with_maps_are_paired(student, teacher):
    own, other = (ends(name) for name in (student, teacher))
    paired = pairs(own, other)
    assert len(paired) == min(len(own), len(other))
    for position, nodes in enumerate((own, other)):
        places = [nodes.index(pair[position]) for pair in paired]
        assert places == sorted(places)
    sides = [(a.side, b.side) for a, b in paired]
    if "lenet5" in (student, teacher):
        assert all(max(pair) / min(pair) < 2 for pair in sides)
    else:
        assert all(a == b for a, b in sides)


def test_stages_between_which_only_pooling_lies_are_two():
    """An adopted network's blocks may add to what pooling made of the stem's maps: then both stages end at one node."""
    block = nn.Conv2d(4, 4, 3, padding=1)
    network = models.adopt(Pooled(block), torch.zeros(1, 3, 16, 16))
    found = stage_ends(network, 16)
    assert [(end.node, end.side) for end in found] == [("stem", 16), ("stem", 8)]
    assert pairs(found, found) == [(end, end) for end in found]


def test_what_cannot_be_paired_is_said():
    maps, few = ends("resnet20"), ends("resnet20", 256)
    with pytest.raises(ValueError, match="the teacher has no feature maps"):
        pairs(maps, ends("lenet300"))
    with pytest.raises(ValueError, match="the student has no feature maps"):
        pairs([], maps)
    with pytest.raises(ValueError, match="stages of maps of 32 16 8 pixels cannot be paired with stages of 256 128 64 pixels"):
        pairs(maps, few)


def watched(network, side: int) -> Watch:
    found = stage_ends(network, side)
    return Watch(network, found, found[-1])


def test_what_is_kept_is_what_the_stages_hand_on():
    network = models.build("resnet20").eval()
    images = torch.rand(2, 3, 16, 16)
    with unchanged(network):
        watch = watched(network, 16)
    stages = [network.stage1(network.stem(images))]
    stages += [network.stage2(stages[0])]
    stages += [network.stage3(stages[1])]
    logits = watch.looking(network)(images)
    seen = watch.take(logits)
    for got, wanted in zip(seen.maps, stages, strict=True):
        assert torch.equal(got, wanted)
    assert torch.equal(seen.last, stages[-1])
    assert torch.equal(seen.embedding, stages[-1].mean((2, 3)))
    assert torch.equal(seen.logits, network.classifier(seen.embedding))


def test_only_passes_that_are_looked_at_are_kept_and_copies_never():
    network = models.build("resnet20").eval()
    watch, images = watched(network, 16), torch.rand(2, 3, 16, 16)
    copied = copy.deepcopy(network)
    network(images)
    assert watch.kept == {}
    watch.looking(copied)(images)
    assert watch.kept == {}
    watch.take(watch.looking(network)(images))
    assert watch.kept == {}


def test_a_network_of_linear_layers_has_an_embedding():
    network = models.build("lenet300", size=8).eval()
    watch = Watch(network, [], None)
    seen = watch.take(watch.looking(network)(torch.rand(2, 3, 8, 8)))
    assert seen.embedding.shape == (2, 100)
    assert seen.last is seen.embedding


def test_a_network_of_two_outputs_is_refused():
    with pytest.raises(ValueError, match="several outputs"):
        Watch(TwoHeads(), [], None)


def test_every_network_is_tried():
    families = {name.split("(")[0] for name in SHALLOW} | {"lenet300"}
    # deeper ones of the same families have the same stages; of detectors nothing is seen
    classifiers = {name for name, entry in NETWORKS.entries.items() if task_of(entry) == "classification"}
    assert {name.rstrip("0123456789") for name in classifiers} == {name.rstrip("0123456789") for name in families}
