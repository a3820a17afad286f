"""SSD has the published sizes, torchvision's outputs, and the same outputs with filters masked as with them removed."""

import json

import pytest
import torch
from torch import nn

import models
from models.layouts import default_boxes, from_torchvision
from pruning import OutputGate, Pruner, accounting
from pruning.factors import Layer, factorised
from pruning.removal import Removal
from settings import arguments
from settings.registry import ROOT, parse_call

pytestmark = pytest.mark.core


def on_meta(arch: str, classes: int = 20):
    with torch.device("meta"):
        return models.build(arch, classes=classes)


@torch.no_grad()
def test_factors_of_full_rank_are_the_same_detector(tmp_path):
    """Its outputs too are of layers that can be factorised, and the file of factors of half the ranks gives what they give."""
    network = models.build("ssd300_vgg16(width=0.03, maps=2)", classes=2).eval()
    card = models.Card("ssd300_vgg16(width=0.03, maps=2)", ["a", "b"], 300, [127.0] * 3, [60.0] * 3)
    image = torch.randn(1, 3, 300, 300)
    layers = {name: layer for name, layer in Layer.all_of(network, 300, kernels=True).items() if not layer.reason}
    assert {"conv4_3", "conv6", *network.outputs} <= layers.keys()
    assert "scale" not in layers
    whole, _ = factorised(network, {name: layer.full for name, layer in layers.items()})
    for got, wanted in zip(whole(image), network(image), strict=True):
        assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    half, _ = factorised(network, {name: layer.at(0.5) for name, layer in layers.items()})
    models.save(tmp_path / "model.pt", half, card)
    for got, wanted in zip(models.load(tmp_path / "model.pt")(image), half(image), strict=True):
        assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()


PUBLISHED = {"ssd300_vgg16(norm=False)": 26_285_486, "ssd512_vgg16(norm=False)": 27_188_676}


@pytest.mark.parametrize(("arch", "parameters"), PUBLISHED.items())
def test_it_has_the_published_number_of_parameters(arch, parameters):
    """Of 20 classes and the background; torchvision's SSD300 has 26,285,486 as well."""
    assert sum(parameter.numel() for parameter in on_meta(arch).parameters()) == parameters


def test_a_picture_takes_31_gmac():
    assert accounting.dense(on_meta("ssd300_vgg16(norm=False)"), 300).macs == 31_374_277_120


# parameters of the papers' pruned networks, by their widths: heads lose inputs only
PRESETS = {"SSD300-6det": 3_926_774, "SSD300-3det": 3_752_181, "SSD512-7det": 5_508_994, "SSD512-4det": 5_067_271}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_leave_what_was_published(preset):
    settings = arguments.parse(["--preset", preset, "--dataset", "voc"])
    network, counts = on_meta(settings.network.arch), arguments.presets()[preset]["kept"]
    kept = {name: torch.arange(unit.filters) < counts.get(name, unit.filters) for name, unit in network.units.items()}
    kept["scale"] = kept["conv4_3"]
    size = settings.data.image_size
    left = accounting.removed(network, kept, accounting.positions(network, size))
    assert left.parameters == PRESETS[preset]
    assert settings.pruning.prune_rate == round(1 - left.filters / accounting.dense(network, size).filters, 4)


def test_presets_are_of_layers_that_there_are():
    presets = json.loads((ROOT / "pruning" / "presets.json").read_text())
    for preset in presets.values():
        if parse_call(preset["arch"])[0].startswith("ssd"):
            assert preset["kept"].keys() <= on_meta(preset["arch"]).units.keys()


@pytest.fixture(scope="module")
def torchvisions():
    from torchvision.models.detection import ssd300_vgg16

    torch.manual_seed(0)
    network = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=4).eval()
    for name, parameter in network.named_parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 15, 25) if "scale" in name else nn.init.normal_(parameter, std=0.1)
    return network


@torch.no_grad()
def test_torchvisions_weights_give_torchvisions_outputs(torchvisions):
    from tasks.boxes import joined

    ours = models.build("ssd300_vgg16(norm=False)", classes=3).eval()
    ours.load_state_dict(from_torchvision(torchvisions.state_dict()))
    images = torch.randn(1, 3, 300, 300)
    theirs = torchvisions.head(list(torchvisions.backbone(images).values()))
    offsets, logits = joined(ours(images))
    assert (offsets - theirs["bbox_regression"]).abs().max() < 1e-5
    assert (logits - theirs["cls_logits"]).abs().max() < 1e-5
    assert logits.std() > 0.1


def test_default_boxes_are_torchvisions(torchvisions):
    from torchvision.models.detection.image_list import ImageList

    sizes = ((38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1))
    maps = [torch.empty(1, 1, *size) for size in sizes]
    theirs = torchvisions.anchor_generator(ImageList(torch.empty(1, 3, 300, 300), [(300, 300)]), maps)[0]
    assert len(theirs) == 8732
    assert torch.allclose(300 * default_boxes(300), theirs, atol=1e-4)


@pytest.mark.parametrize(("arch", "size", "sides"), [
    ("ssd300_vgg16(width=0.03)", 300, [38, 19, 10, 5, 3, 1]),
    ("ssd300_vgg16(width=0.03, maps=1)", 300, [38]),
    ("ssd512_vgg16(width=0.03)", 512, [64, 32, 16, 8, 4, 2, 1]),
])  # fmt: skip
def test_the_maps_have_the_published_sizes(arch, size, sides):
    network = on_meta(arch, classes=3)
    outputs = network(torch.empty(2, 3, size, size, device="meta"))
    assert [output.shape[2] for output in outputs] == 2 * sides
    boxes = {1: (4,), 6: (4, 6, 6, 6, 4, 4), 7: (4, 6, 6, 6, 6, 4, 4)}[len(sides)]
    assert [output.shape[1] for output in outputs] == [each * n for each in (4, 4) for n in boxes]  # 4 sides; 3 classes and none


def masked(arch: str, seed: int):
    """A detector in float64, in evaluation, with random masks on all filters that may go and nothing at its default."""
    torch.manual_seed(seed)
    network = models.build(arch, classes=3).double().eval()
    for parameter in network.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, -0.3, 1.0)
    for unit in network.all_units.values():
        if unit.norm is not None:
            nn.init.uniform_(unit.norm.running_mean, -0.5, 0.5)
            nn.init.uniform_(unit.norm.running_var, 0.5, 1.5)
    keep = {name: torch.rand(unit.filters) < 0.5 for name, unit in network.units.items()}
    keep["scale"] = keep["conv4_3"]
    for name, unit in network.units.items():
        unit.gate = OutputGate(unit.filters)
        unit.gate.set(keep[name] | (torch.arange(unit.filters) == 0))
    return network


@pytest.mark.parametrize(("norm", "seed"), [(True, 0), (True, 1), (False, 2), (False, 3)])
@torch.no_grad()
def test_masked_is_removed(norm, seed):
    network = masked(f"ssd300_vgg16(width=0.03, norm={norm})", seed)
    images = torch.randn(2, 3, 300, 300, dtype=torch.float64)
    wanted, smaller = network(images), Removal(network).compact().eval()
    for before, after in zip(wanted, smaller(images), strict=True):
        assert (before - after).abs().max() <= 1e-10 * before.abs().max().clamp_min(1)
    assert sum(p.numel() for p in smaller.parameters()) == accounting.remaining(network, 300).parameters
    assert smaller.scale.filters == smaller.conv4_3.filters < network.conv4_3.filters


@torch.no_grad()
def test_the_length_is_that_of_the_channels_that_stay():
    """Zero behind the division by the length would leave the others shorter than removal does."""
    network = masked("ssd300_vgg16(width=0.03)", 0)
    for name, unit in network.units.items():
        if name not in ("conv4_3", "scale"):
            unit.gate = None
    network.scale.layer.weight.fill_(1.0)
    seen = []
    network.scale.register_forward_hook(lambda _, __, y: seen.append(y))
    network(torch.randn(1, 3, 300, 300, dtype=torch.float64))
    lengths = seen[0].norm(dim=1)
    alive = seen[0].abs().sum(1) > 0
    assert torch.allclose(lengths[alive], torch.ones((), dtype=torch.float64))
    assert (seen[0][:, ~network.conv4_3.alive(torch.bool)] == 0).all()


def test_while_masks_move_the_length_is_that_of_the_channels_that_stay():
    """Also where nothing but the scale reads what it scales, as a depthwise convolution may, which masks for both."""
    torch.manual_seed(0)
    network = models.build("ssd300_vgg16(width=0.03, maps=1)", classes=2)
    Pruner(network, criterion="L1", rate=0.5, image_size=300).update(0.5)
    for unit in network.units.values():
        unit.gate.straight_through = True
    seen = []
    network.scale.register_forward_hook(lambda _, inputs, y: seen.append(inputs[0]))
    network(torch.randn(2, 3, 300, 300))
    cut = network.conv4_3.live == 0
    assert cut.any()
    assert (seen[0][:, cut] == 0).all()


def test_parts_begin_where_the_paper_says():
    parts = on_meta("ssd300_vgg16").parts(4)
    assert [(part[0], part[-1]) for part in parts] == [
        ("conv1_1", "conv4_2"), ("conv4_3", "conv6"), ("conv7", "conv8_1"), ("conv8_2", "conv11_2")
    ]  # fmt: skip
    assert "scale" in parts[1]


def test_parts_are_otherwise_alike():
    network = models.build("resnet20")
    parts = network.parts(4)
    assert [name for part in parts for name in part] == list(network.units)
    assert {len(part) for part in parts} == {len(network.units) // 4, -(-len(network.units) // 4)}
    with pytest.raises(ValueError, match="1000 parts"):
        network.parts(1000)


def test_a_part_is_penalised_with_what_reads_it():
    network = on_meta("ssd300_vgg16")
    assert network.with_readers(["conv4_3", "scale"]) == {"conv4_3", "scale", "conv5_1", "boxes1", "classes1"}


def test_fresh_weights_begin_at_the_published_scale():
    network = models.build("ssd300_vgg16(width=0.25)")
    assert torch.equal(network.scale.weight, torch.full_like(network.scale.weight, 10.0))  # 20 of 512 channels
    assert (network.classes1.layer.bias == 0).all()
