"""These tests are about MobileNets: their sizes, and depthwise filters, ReLU6 and linear streams wherever filters go."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_DATA, narrow, run_program
from torch import nn
from torchvision.models import mobilenet_v2

import models
from deploy.folding import folded
from models import Card, Joint, Unit
from models.layers import conv_unit
from models.shapes import divisible
from pruning import Pruner, WeightMask, accounting
from pruning.channels import put_in_one
from pruning.derivatives import synaptic_flow
from pruning.gates.scale import put_scales
from pruning.groups import Decisions
from pruning.removal import Removal
from regularizers import reg_cov, reg_cov_ijcai2018, reg_ortho
from settings.errors import Refused
from settings.registry import CRITERIA, SCOPES

# of version 1, from table 1 of the paper: (kind, channels, filters, pixels a side of its output), the first stride 1
FIRST = [
    ("conv", 3, 32, 32), ("dw", 32, 32, 32), ("pw", 32, 64, 32), ("dw", 64, 64, 16), ("pw", 64, 128, 16),
    ("dw", 128, 128, 16), ("pw", 128, 128, 16), ("dw", 128, 128, 8), ("pw", 128, 256, 8), ("dw", 256, 256, 8),
    ("pw", 256, 256, 8), ("dw", 256, 256, 4), ("pw", 256, 512, 4), *[("dw", 512, 512, 4), ("pw", 512, 512, 4)] * 5,
    ("dw", 512, 512, 2), ("pw", 512, 1024, 2), ("dw", 1024, 1024, 2), ("pw", 1024, 1024, 2), ("fc", 1024, 10, 1),
]  # fmt: skip
# of version 2, from table 2: (channels, expanded, filters, pixels before, pixels behind), the first two strides 1
SECOND = [
    (32, 32, 16, 32, 32), (16, 96, 24, 32, 32), (24, 144, 24, 32, 32), (24, 144, 32, 32, 16), *[(32, 192, 32, 16, 16)] * 2,
    (32, 192, 64, 16, 8), *[(64, 384, 64, 8, 8)] * 3, (64, 384, 96, 8, 8), *[(96, 576, 96, 8, 8)] * 2,
    (96, 576, 160, 8, 4), *[(160, 960, 160, 4, 4)] * 2, (160, 960, 320, 4, 4),
]  # fmt: skip
# the same at a quarter of the width: 4, 6 and 80 / 4 become 8, 8 and 24
QUARTER = [
    (8, 8, 8, 32, 32), (8, 48, 8, 32, 32), (8, 48, 8, 32, 32), (8, 48, 8, 32, 16), *[(8, 48, 8, 16, 16)] * 2,
    (8, 48, 16, 16, 8), *[(16, 96, 16, 8, 8)] * 3, (16, 96, 24, 8, 8), *[(24, 144, 24, 8, 8)] * 2,
    (24, 144, 40, 8, 4), *[(40, 240, 40, 4, 4)] * 2, (40, 240, 80, 4, 4),
]  # fmt: skip
V1, V2 = "mobilenet(width=0.05)", "mobilenetv2(width=0.05)"


def blocks_of(table):
    """The layers of version 2 whose blocks are these."""
    yield "conv", 3, table[0][0], 32
    for channels, inner, filters, before, behind in table:
        if inner > channels:
            yield "pw", channels, inner, before
        yield from (("dw", inner, inner, behind), ("pw", inner, filters, behind))
    yield from (("pw", table[-1][2], 1280, 4), ("fc", 1280, 10, 1))


def counted(layers) -> tuple[int, int]:
    """Parameters and MACs of these layers, a convolution with batch norm's scale and shift, a linear layer with its bias."""
    parameters = macs = 0
    for kind, channels, filters, side in layers:
        weights = {"conv": 9 * channels * filters, "dw": 9 * filters}.get(kind, channels * filters)
        parameters += weights + (filters if kind == "fc" else 2 * filters)
        macs += weights * side**2
    return parameters, macs


@pytest.mark.core
@pytest.mark.parametrize(("name", "layers"), [
    ("mobilenet", FIRST), ("mobilenetv2", list(blocks_of(SECOND))), ("mobilenetv2(width=0.25)", list(blocks_of(QUARTER)))
])  # fmt: skip
def test_its_size_is_that_of_the_papers_tables(name, layers):
    with torch.device("meta"):
        network = models.build(name)
    count = accounting.dense(network, 32)
    assert (count.parameters, count.macs) == counted(layers)
    assert count.filters == sum(filters for kind, _, filters, _ in layers if kind != "fc")
    pixels = accounting.positions(network, 32)
    assert [pixels[unit] for unit in network.all_units] == [side**2 for *_, side in layers]


@pytest.mark.core
@pytest.mark.parametrize("width", [0.25, 0.35, 0.5, 0.75, 1.0, 1.4])
def test_it_has_the_tensors_of_torchvision(width):
    with torch.device("meta"):
        ours, theirs = models.build(f"mobilenetv2(width={width})"), mobilenet_v2(num_classes=10, width_mult=width)
    shapes = [[(*value.shape,) for value in network.parameters()] for network in (ours, theirs)]
    assert shapes[0] == shapes[1]


@pytest.mark.core
def test_channels_are_rounded_to_a_multiple_of_8_and_never_lose_a_tenth():
    assert [divisible(filters, 8) for filters in (1, 4, 12, 11.2, 18, 22.4, 33.6)] == [8, 8, 16, 16, 24, 24, 32]
    assert divisible(67, 8) == 64
    for name, width in ((V1, 0), (V2, -1.0), (V2, 17)):
        with pytest.raises(ValueError, match="option 'width' of network"):
            models.build(f"{name.split('(')[0]}(width={width})")


@pytest.mark.core
@torch.no_grad()
def test_relu6_is_behind_all_but_the_linear_bottlenecks():
    network = ready(V2)
    seen = {}
    for name, unit in network.all_units.items():
        unit.register_forward_hook(lambda _, __, y, name=name: seen.update({name: (y.min().item(), y.max().item())}))
    network(20 * batch(4)[0])
    linear = [seen.pop(name) for name in [*seen] if name.endswith("project")]
    assert min(least for least, _ in linear) < 0
    assert max(most for _, most in linear) > 6
    del seen["classifier"]
    assert min(least for least, _ in seen.values()) == 0
    assert max(most for _, most in seen.values()) == 6
    total = Joint(activation=False)(torch.tensor([[[[-3.0]]]]), torch.tensor([[[[1.0]]]]))
    assert total.item() == -2


def ready(name: str, seed: int = 0, factor: int = 4, size: int = 8):
    """A network in float64 and evaluation mode, with batch norm's statistics of noise, and scales and shifts of both signs."""
    torch.manual_seed(seed)
    network = narrow(models.build(name, classes=4), factor).double()
    norms = [unit.norm for unit in network.all_units.values() if unit.norm is not None]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        norm.weight.data *= torch.randint(0, 2, norm.weight.shape) * 2 - 1
        nn.init.uniform_(norm.bias, -0.5, 0.5)
        norm.momentum = 1.0
    with torch.no_grad():
        network(torch.randn(16, 3, size, size, dtype=torch.float64))
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()


def batch(images: int = 24, size: int = 8):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(images, 3, size, size, generator=generator, dtype=torch.float64), torch.arange(images) % 4


def pruned(network, images: int = 24, **options) -> Pruner:
    x, labels = batch(images)
    pruner = Pruner(network, **{"rate": 0.4, "image_size": 8, **options})
    pruner.begin(epochs=4, steps=2, sample=lambda: iter([(x, labels)]))
    pruner.update(pruner.rate)
    return pruner


@torch.no_grad()
def assert_it_leaves_exactly(network):
    """Each depthwise filter goes with its channel, and the smaller network has the same outputs and the size foretold."""
    units, tied = network.units, [link for link in network.links if link.ties]
    for link in tied:
        for writer in (other.unit for other in network.links if other.target == link.source):
            keep = units[writer].gate.decide()
            assert torch.equal(units[link.unit].gate.decide()[: len(keep)], keep)
    smaller, x = Removal(network.eval()).compact().eval(), batch(4)[0]
    torch.testing.assert_close(smaller(x), network(x), rtol=0, atol=1e-10)
    assert accounting.remaining(network, 8) == accounting.dense(smaller, 8)
    return smaller


SHORTER = {"LcP": "LcP(evaluations=4)"}  # a search that is long by default
CRITERIA_HERE = [name for name, entry in CRITERIA.entries.items() if "zeros of a ReLU" not in entry.traits]


@pytest.mark.parametrize("name", CRITERIA_HERE)
def test_every_criterion_cuts_depthwise_filters_with_their_channels(name):
    network = ready(V2)
    images = 400 if "more images than filters" in CRITERIA.entries[name].traits else 24
    pruned(network, images, criterion=SHORTER.get(name, name))
    assert_it_leaves_exactly(network)


@pytest.mark.parametrize("arch", [V1, V2])
@pytest.mark.parametrize("options", [
    {"budget": "macs", "rate": 0.5}, {"budget": "parameters", "rate": 0.3, "round_to": 2}, {"gate": "soft"},
    {"residual": "grouped"}, {"residual": "grouped", "budget": "macs"},
    *({"scope": name} for name, entry in SCOPES.entries.items() if not {"filters only", "single weights"} & entry.traits.keys()),
], ids=str)  # fmt: skip
def test_scopes_budgets_and_masks(arch, options):
    network = ready(arch)
    if options.get("scope") in ("preset", "sensitivity"):
        pytest.skip("it names the layers of a file")
    pruned(network, **options)
    smaller = assert_it_leaves_exactly(network)
    if "budget" in options:
        left = (getattr(accounting.dense(each, 8), options["budget"]) for each in (smaller, network))
        assert next(left) / next(left) <= 1 - options.get("rate", 0.4)


def test_where_zeros_are_counted_linear_outputs_are_refused_by_name():
    with pytest.raises(ValueError, match=r"^APoZ counts the zeros behind a ReLU, and 'blocks\.0\.project' has none$"):
        pruned(ready(V2), criterion="APoZ")
    network = ready(V1)
    pruned(network, criterion="APoZ")
    assert_it_leaves_exactly(network)


@pytest.mark.core
@pytest.mark.parametrize("criterion", ["FPGM", "correlation"])
def test_a_depthwise_filter_is_compared_with_none(criterion):
    """The score of a channel is that of the filter that writes it; of L1 it is the mean of both, by their layers' means."""
    network = ready(V1)
    pruner = pruned(network, criterion=criterion)
    scores = pruner.scores()
    merged = pruner.decisions.merge(scores)
    assert [*merged] == ["stem", *(f"blocks.{number}.pointwise" for number in range(13))]
    assert all(torch.equal(merged[name], scores[name]) for name in merged)
    assert not torch.equal(pruned(ready(V1)).decisions.merge(scores)["stem"], scores["stem"])


@pytest.mark.core
def test_a_channel_is_one_decision_from_where_it_is_written_to_where_it_is_read():
    network = models.build("mobilenetv2")
    layers = Decisions(network, list(network.units), "free").layers
    assert layers["stem"] == ["stem", "blocks.0.depthwise"]
    assert layers["blocks.2.expand"] == ["blocks.2.expand", "blocks.2.depthwise"]
    assert layers["blocks.2.project"] == ["blocks.2.project"]
    grouped = Decisions(network, list(network.units), "grouped").layers
    assert ["blocks.3.project", "blocks.4.project", "blocks.5.project"] in grouped.values()
    # a quarter as wide the first two blocks keep the shape, and add to what the stem has written
    quarter = models.build("mobilenetv2(width=0.25)")
    layers = Decisions(quarter, list(quarter.units), "free").layers
    assert layers["stem"] == ["stem", *(f"blocks.{block}" for block in ("0.depthwise", "0.project", "1.project", "2.project"))]
    masks = {name: SimpleNamespace(masked_behind=False, for_both=False) for name in quarter.units}
    put_in_one(quarter, masks)
    assert masks["blocks.1.expand"].masked_behind
    assert masks["blocks.1.depthwise"].for_both
    assert not masks["stem"].masked_behind


class Pair(models.Network):
    """A convolution, a depthwise one with stride 2 behind it, and a classifier."""

    def __init__(self):
        super().__init__()
        self.first = conv_unit(3, 5, 3, activation="relu6")
        self.depthwise = conv_unit(5, 5, 3, 2, activation="relu6", groups=5)
        self.classifier = Unit(nn.Linear(5, 2), norm=False, activation=False)
        self.wire("first", "input", "first")
        self.wire("depthwise", "first", "depthwise", ties="channel")
        self.wire("classifier", "depthwise", "output")

    def forward(self, x):
        return self.classifier(self.depthwise(self.first(x)).mean((2, 3)))


@pytest.mark.core
@pytest.mark.parametrize("training", [True, False])
def test_while_masks_move_both_filters_learn_what_one_mask_behind_them_passes(training):
    """Against the network without masks: its own gradients for all weights, those for the images of what is live alone."""
    torch.manual_seed(0)
    network, mask = Pair().double().train(training), torch.tensor([1, 0, 1, 0, 1.0]).double()
    for unit in (network.first, network.depthwise):
        nn.init.uniform_(unit.norm.weight, 1.0, 3.0)
        nn.init.uniform_(unit.norm.bias, 0.5, 2.0)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    whole, upstream = copy.deepcopy(network), torch.randn(4, 5, 4, 4, dtype=torch.float64)
    y = whole.depthwise(whole.first(x))
    weights = [whole.first.layer.weight, whole.depthwise.layer.weight, whole.first.norm.bias]
    wanted = torch.autograd.grad((y * upstream).sum(), weights, retain_graph=True)
    (wanted_x,) = torch.autograd.grad((y * mask.view(-1, 1, 1) * upstream).sum(), x)
    pruner = Pruner(network, rate=0.4)
    for gate in pruner.gates.values():
        gate.set(mask)
    pruner.let_move(True)
    got_y = network.depthwise(network.first(x))
    assert torch.equal(got_y, y * mask.view(-1, 1, 1))
    weights = [network.first.layer.weight, network.depthwise.layer.weight, network.first.norm.bias]
    got = torch.autograd.grad((got_y * upstream).sum(), weights, retain_graph=True)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    assert (got[0].flatten(1).norm(dim=1) > 0).all()
    torch.testing.assert_close(torch.autograd.grad((got_y * upstream).sum(), x)[0], wanted_x, rtol=0, atol=1e-12)
    # once masks are fixed each is in force by itself, and what is cut has no gradient
    pruner.let_move(False)
    assert (network.first(x)[:, mask == 0] == 0).all()
    still = torch.autograd.grad((network.depthwise(network.first(x)) * upstream).sum(), weights[0])[0]
    assert (still[mask == 0] == 0).all()


@pytest.mark.core
@torch.no_grad()
def test_constants_of_the_published_placement_pass_depthwise_filters_relu6_and_linear_streams():
    """With kernels of one weight nothing is padded, so that a constant is one everywhere; shifts go beyond 0 and 6."""
    network = ready("mobilenetv2", factor=16)
    for unit in network.units.values():
        side = unit.weight.shape[2] // 2
        unit.layer.weight = nn.Parameter(unit.layer.weight[:, :, side : side + 1, side : side + 1].clone())
        unit.layer.kernel_size, unit.layer.padding = (1, 1), (0, 0)
        unit.norm.bias.uniform_(-4, 9)
        unit.norm.running_mean.uniform_(-1, 1)
    decisions = Decisions(network, list(network.units), "free")
    keep = {layer: torch.rand(network.units[members[0]].filters) > 0.3 for layer, members in decisions.layers.items()}
    for layer, members in decisions.layers.items():
        for name in members:
            network.units[name].gate = WeightMask((network.units[name].filters,)).double()
            network.units[name].gate.set(keep[layer])
    removal, x = Removal(network), batch(3)[0]
    assert not removal.exact
    smaller = removal.compact()
    assert any((joint.constant < 0).any() for joint in smaller.joints.values() if joint.constant is not None)
    for form in (smaller, folded(smaller), folded(smaller, 16)):
        torch.testing.assert_close(form(x), network(x), rtol=0, atol=1e-10)


@pytest.mark.core
@torch.no_grad()
@pytest.mark.parametrize("of", ["block", "filter"])
def test_scales_settle_before_a_relu6(of):
    """Scales from 0 to 3 would move what a ReLU6 cuts off; some blocks or channels are at 0."""
    network = ready("mobilenetv2", factor=16)
    put_scales(network, of)
    decisions = Decisions(network, list(network.units), "free")
    for members in decisions.layers.values():
        gone = torch.rand(network.units[members[0]].filters) < 0.3
        for name in members:
            if (gate := network.units[name].gate) is not None:
                gate.scale.uniform_(0.5, 3.0)
                gate.scale[gone[: len(gate.scale)]] = 0
    smaller, x = Removal(network).compact(), batch(3)[0]
    torch.testing.assert_close(smaller(x), network(x), rtol=0, atol=1e-10)
    whole, left = (sum(unit.filters for unit in each.units.values()) for each in (network, smaller))
    assert left < whole


@pytest.mark.core
def test_synaptic_flow_is_the_same_through_every_layer():
    """Of a network with ReLU6s, through which far more flows than 6."""
    network = ready(V1)
    network.blocks[3].depthwise.activation = "relu6"
    for unit in network.units.values():
        unit.layer.weight.data *= 10
        unit.norm.bias.data.zero_()
        unit.norm.running_mean.zero_()
    network.classifier.layer.bias.data.zero_()
    total, scores = synaptic_flow(network, (3, 8, 8))
    assert total > 1e6
    for name, score in scores.items():
        torch.testing.assert_close(score.sum(), total, msg=name)
    assert network.blocks[3].depthwise.activation == "relu6"


@pytest.mark.core
def test_only_filters_that_read_the_same_channels_are_decorrelated():
    network = ready(V2)
    plain = [unit.weight.detach().flatten(1) for name, unit in network.units.items() if "depthwise" not in name]
    wanted = [(torch.corrcoef(rows) - torch.eye(len(rows))).abs().sum() / (len(rows) * (len(rows) - 1)) for rows in plain]
    torch.testing.assert_close(reg_cov(network, weight=1.0), sum(wanted) / len(wanted))
    for penalty in (reg_cov, reg_cov_ijcai2018, reg_ortho):
        network.zero_grad()
        penalty(network).backward()
        silent = {name for name, unit in network.units.items() if unit.weight.grad is None or not unit.weight.grad.any()}
        assert {name for name in network.units if "depthwise" in name} == silent
    # the groups of a convolution in groups are layers of their own
    grouped = models.build("resnext11(groups=2, width=4)").double()
    block = grouped.stage1[0]
    sets = [unit.weight.detach() for unit in grouped.units.values() if unit is not block.conv2 and not unit.in_groups]
    sets += [part for unit in grouped.units.values() if unit.in_groups for part in unit.weight.detach().chunk(2)]
    rows = [part.flatten(1) for part in sets]
    wanted = [(torch.corrcoef(each) - torch.eye(len(each))).abs().sum() / (len(each) * (len(each) - 1)) for each in rows]
    torch.testing.assert_close(reg_cov(grouped, weight=1.0), sum(wanted) / len(wanted))


@pytest.mark.core
@torch.no_grad()
def test_a_smaller_one_is_written_read_and_folded(tmp_path):
    network = ready(V2)
    pruned(network, rate=0.5)
    smaller = Removal(network).compact().float()
    models.save(tmp_path / "model.pt", smaller, Card(V2, list("abcd"), 8, [0.0] * 3, [1.0] * 3))
    loaded, x = models.load(tmp_path / "model.pt"), batch(3)[0].float()
    assert loaded.shapes() == smaller.shapes()
    torch.testing.assert_close(loaded(x), smaller(x))
    for align in (None, 16):
        torch.testing.assert_close(folded(smaller, align)(x), smaller(x), rtol=1e-4, atol=1e-4)


@pytest.mark.core
def test_a_gate_for_each_filter_is_refused_in_one_line():
    with pytest.raises(Refused, match=r"'blocks\.0\.depthwise' ties its filters to its channels"):
        run_program(*TINY_DATA, "--arch", V2, "--prune_type", "structured", "--prune_gate", "hard_concrete")


def test_a_step_in_bfloat16_is_nearly_one_in_float32():
    """Channels last, on the CPU, for a quarter of the width: the loss of the same weights, and a gradient everywhere."""
    torch.manual_seed(0)
    network = models.build("mobilenetv2(width=0.25)").to(memory_format=torch.channels_last)
    x, labels = torch.randn(16, 3, 32, 32).to(memory_format=torch.channels_last), torch.arange(16) % 10
    losses = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(F.cross_entropy(copy.deepcopy(network)(x).float(), labels))
    torch.testing.assert_close(losses[0], losses[1], rtol=0.05, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        F.cross_entropy(network(x).float(), labels).backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    assert all(unit.weight.grad.any() for unit in network.all_units.values())


@pytest.mark.parametrize("flags", [
    ["--dataset", "digits", "--device", "cpu", "--arch", "mobilenetv2(width=0.25)", "--target_macs", "0.5", "--dry_run"],
    [*TINY_DATA, "--arch", V2, "--target_macs", "0.5", "--compact", "--out_dir", "run"],
    [*TINY_DATA, "--arch", V1, "--reg", "reg_cov", "--prune_rate", "0.3", "--compact", "--out_dir", "run"],
], ids=["digits", "V2", "V1"])  # fmt: skip
def test_a_run(tmp_path, monkeypatch, capsys, flags):
    monkeypatch.chdir(tmp_path)
    run_program(*flags, "--prune_type", "structured", "--epochs", "1", "--batch_size", "27", "--lr", "0.01")
    shown = capsys.readouterr().out
    assert "result test accuracy" in shown
    assert ("result removal: the same outputs" in shown) == ("--compact" in flags)
