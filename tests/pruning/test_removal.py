"""These tests check that removed equals masked, for any masks: outputs, gradients, steps of training, counts."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from conftest import TwoBlocks, narrow
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from toys import Bottlenecks

import models
from deploy.folding import folded
from pruning import OutputGate, WeightMask, accounting
from pruning.groups import Decisions
from pruning.removal import Removal, ungated

NETWORKS = {
    "chain": lambda: narrow(models.build("vgg16", classes=7), 4),
    "projection": lambda: models.build("resnet20", classes=7),
    "pad": lambda: models.build("resnet20(shortcut='pad')", classes=7),
    "basic": lambda: narrow(models.build("resnet18", classes=7), 4),
    "bottleneck": lambda: Bottlenecks(classes=7),
    "separable": lambda: narrow(models.build("mobilenet", classes=7), 32),
    "inverted": lambda: narrow(models.build("mobilenetv2", classes=7), 16),  # each stage has a stream of its own
    "inverted, a quarter": lambda: narrow(models.build("mobilenetv2(width=0.25)", classes=7)),  # three stages share the stem's
}


@functools.cache
def fresh(name):
    with torch.random.fork_rng(devices=[]):  # whichever test comes first
        torch.manual_seed(0)
        return NETWORKS[name]()


def prepared(name, seed, rate, residual="free", dead=(), mask=OutputGate):
    """A network in float64 with random masks, batch norm's statistics, scales of both signs and shifts."""
    torch.manual_seed(seed)
    network = copy.deepcopy(fresh(name)).double().eval()
    for unit in network.all_units.values():
        if unit.norm is not None:
            torch.nn.init.uniform_(unit.norm.weight, -1.0, 1.5)
            torch.nn.init.uniform_(unit.norm.bias, -0.5, 0.5)
            unit.norm.momentum = 1.0
    with torch.no_grad():  # statistics of real images, or nothing of them would be left behind fifty layers
        network.train()(images(network, 16))
    for unit in network.eval().all_units.values():
        if unit.norm is not None:
            unit.norm.momentum = 0.1
            unit.norm.running_mean += torch.empty_like(unit.norm.running_mean).uniform_(-0.5, 0.5) * unit.norm.running_var.sqrt()
            unit.norm.running_var *= torch.empty_like(unit.norm.running_var).uniform_(0.5, 1.5)
            unit.norm.running_var.clamp_min_(0.05)  # a channel that these images do not reach would be scaled 300 times
    decisions = Decisions(network, list(network.units), residual)
    scores = {unit: torch.rand(part.filters) for unit, part in network.units.items()}
    keep = decisions.spread({layer: score >= rate for layer, score in decisions.merge(scores).items()}, scores)
    names, tied = list(network.units), {link.unit for link in network.links if link.ties}
    for index in dead:
        name = names[index % len(names)]
        layer = next(members for members in decisions.layers.values() if name in members)
        # what is tied together is decided together; a writer of a stream may be dead by itself
        for unit in layer if tied & {*layer} else (name,):
            keep[unit] = torch.zeros_like(keep[unit])
    for unit, part in network.units.items():
        part.gate = mask(part.filters) if mask is OutputGate else mask((part.filters,))
        part.gate.set(keep[unit])
    return network.double()


def images(network, batch=2):
    size = 32 if isinstance(network, type(fresh("chain"))) else 8
    return torch.randn(batch, 3, size, size, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(list(NETWORKS)),
    rate=st.sampled_from([0.0, 0.3, 0.6, 0.9, 0.99]),
    residual=st.sampled_from(["free", "grouped"]),
    dead=st.lists(st.integers(0, 30), max_size=3),
    seed=st.integers(0, 10**6),
)
# a stage whose first branch is dead behind a shortcut without parameters
@example(name="pad", rate=0.0, residual="free", dead=[8], seed=0)
# outputs that are large where a channel is hardly ever reached
@example(name="separable", rate=0.0, residual="free", dead=[], seed=18)
@torch.no_grad()
def test_outputs_are_those_of_the_masked_network(name, rate, residual, dead, seed):
    network = prepared(name, seed, rate, residual, dead)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    masks = [unit.gate for unit in network.units.values()]
    removal = Removal(network)
    smaller, x = removal.compact(), images(network)
    masked = network(x)
    assert removal.exact
    assert [unit.gate for unit in network.units.values()] == masks
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    scale = masked.abs().max()
    for form in (smaller, folded(smaller), folded(smaller, 16)):
        assert (form(x) - masked).abs().max() <= 1e-10 * scale.clamp_min(1)
    network.float()
    smaller.float()
    for form in (smaller, folded(smaller), folded(smaller, 8)):
        assert (form(x.float()) - network(x.float())).abs().max() <= 1e-4 * scale.clamp_min(1e-3)  # through fifty layers
    network.double()
    # what was counted beforehand is what is there
    pixels = accounting.positions(smaller, x.shape[-1])
    assert accounting.count(smaller, pixels) == accounting.remaining(network, x.shape[-1])
    with FlopCounterMode(display=False) as counter:
        smaller(x[:1].float())
    assert counter.get_total_flops() == 2 * accounting.count(smaller, pixels).macs


# through 27 or more batch norms of so few values gradients reach 1e20; tests/pruning/test_wiring.py trains depthwise ones
TRAINABLE = [name for name in NETWORKS if not name.startswith(("separable", "inverted"))]


@pytest.mark.parametrize("name", TRAINABLE)
@pytest.mark.parametrize("rate", [0.3, 0.9])
@pytest.mark.parametrize("residual", ["free", "grouped"])
def test_training_goes_on_as_if_masked(name, rate, residual):
    """Two steps with the mask fixed, then removal, then three steps of both networks side by side, momentum and all.

    Rounding grows from step to step: batch norm divides by the deviation of eight values in the last stages.
    """
    network = prepared(name, 1, rate, residual, dead=[4]).train().to(memory_format=torch.channels_last)
    options = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-3, "fused": True}
    optimizer = torch.optim.SGD(network.parameters(), **options)
    labels = torch.tensor([0, 3, 6, 1, 2, 5, 4, 3])

    def step(model, its_optimizer, x):
        loss = F.cross_entropy(model(x), labels)
        its_optimizer.zero_grad()
        loss.backward()
        its_optimizer.step()
        return loss.item()

    def batch(number):
        torch.manual_seed(100 + number)
        return images(network, 8)

    for number in range(2):
        step(network, optimizer, batch(number))
    removal = Removal(network)
    smaller = removal.compact().train()
    its_optimizer = torch.optim.SGD(smaller.parameters(), **options)
    removal.carry(optimizer, smaller, its_optimizer)
    assert len(its_optimizer.state) > 10
    for number in range(2, 5):
        assert step(smaller, its_optimizer, batch(number)) == pytest.approx(step(network, optimizer, batch(number)), abs=1e-9)
        parameters = dict(network.named_parameters())
        for key, parameter in smaller.named_parameters():
            if parameter.numel():
                theirs = removal.cut(key, parameters[key])
                assert (parameter - theirs).abs().max() <= 1e-9, key
                assert (parameter.grad - removal.cut(key, parameters[key].grad)).abs().max() <= 5e-9, key
    network.eval()
    smaller.eval()
    with torch.no_grad():
        assert (network(batch(9)) - smaller(batch(9))).abs().max() <= 1e-9


@pytest.mark.core
def test_by_hand(two_blocks, batch):
    """Channel 0 of the stream is first written by block b, channel 1 by nobody, and a1 is empty: a2 gives its bias."""
    network, (x, _) = two_blocks.eval(), batch
    for unit in network.units.values():
        unit.gate = OutputGate(unit.filters).double()
    network.stem.gate.set(torch.tensor([0, 0, 1, 1, 1, 1]))
    network.a2.gate.set(torch.tensor([0, 0, 1, 0, 1, 0]))
    network.b2.gate.set(torch.tensor([1, 0, 1, 1, 1, 1]))
    network.a1.gate.set(torch.zeros(5))
    smaller = Removal(network).compact()
    widths = {name: tuple(unit.weight.shape[:2]) for name, unit in smaller.all_units.items()}
    assert widths == {"stem": (4, 3), "a1": (0, 0), "a2": (2, 0), "b1": (5, 4), "b2": (5, 5), "classifier": (4, 5)}
    assert (smaller.a.width, smaller.a.index.tolist()) == (4, [0, 2])
    assert (smaller.b.width, smaller.b.index) == (None, None)  # writes all five channels, in order
    assert torch.equal(smaller.classifier.weight, network.classifier.weight[:, [2, 3, 4, 5, 0]])
    assert (network(x) - smaller(x)).abs().max() <= 1e-12


@pytest.mark.core
def test_grouped_masks_narrow_the_stream():
    network = prepared("projection", 0, 0.5, "grouped")
    smaller = Removal(network).compact()
    stage = {name: unit for name, unit in smaller.units.items() if name.startswith("stage2") and not name.endswith("conv1")}
    assert len(stage) == 4
    assert len({unit.filters for unit in stage.values()}) == 1
    assert smaller.stage2[1].conv1.weight.shape[1] == smaller.stage2[1].conv2.filters < 32
    assert all(joint.index is None for joint in smaller.joints.values())


@pytest.mark.core
def test_shortcuts_without_parameters_are_decided_with_their_stream():
    """Channel c of stage 1 is copied to stage 2 and 3: one decision with 10 writers, fewer for the channels behind it."""
    network = fresh("pad")
    decisions = Decisions(network, list(network.units), "grouped")
    streams = [members for members in decisions.layers.values() if len(members) > 1]
    assert [len(members) for members in streams] == [10]
    scores = {name: torch.ones(unit.filters) for name, unit in network.units.items()}
    scores["stage3.0.conv2"][40] = 5.0
    merged = decisions.merge(scores)
    layer = next(layer for layer, members in decisions.layers.items() if len(members) > 1)
    assert merged[layer].shape == (64,)
    assert merged[layer].argmax() == 40
    keep = decisions.spread({name: score > score.mean() for name, score in merged.items()}, scores)
    assert [int(keep[f"stage{n}.1.conv2"].sum()) for n in (1, 2, 3)] == [0, 0, 1]


@pytest.mark.core
def test_a_merged_score_is_the_mean_of_what_is_comparable():
    """Writers with scores [1, 3] and [30, 10]: by their means [.5, 1.5] and [1.5, .5], so 1 and 1 at the mean scale 11."""
    network = TwoBlocks(width=2)
    decisions = Decisions(network, ["a2", "b2"], "grouped")
    merged = decisions.merge({"a2": torch.tensor([1.0, 3.0]), "b2": torch.tensor([30.0, 10.0])})
    assert merged["stream"].tolist() == pytest.approx([11.0, 11.0])


class TestPublishedPlacement:
    """Masks before batch norm leave constants behind."""

    def test_is_never_called_exact(self):
        assert not Removal(prepared("projection", 0, 0.5, mask=WeightMask)).exact

    @pytest.mark.core
    @torch.no_grad()
    def test_without_borders_the_fold_is_exact(self, two_blocks, batch):
        """With 1x1 kernels nothing is padded, so that a constant input is a constant everywhere."""
        network = two_blocks.eval()
        for unit in network.units.values():
            unit.layer.weight = torch.nn.Parameter(unit.layer.weight[:, :, 1:2, 1:2].clone())
            unit.layer.padding, unit.layer.kernel_size = (0, 0), (1, 1)
            unit.gate = WeightMask((unit.filters,)).double()
            unit.gate.set(torch.arange(unit.filters) % 3 > 0)
        network.a1.gate.set(torch.zeros(5))
        smaller = Removal(network).compact()
        assert smaller.a1.filters == 0
        for form in (smaller, folded(smaller)):
            assert (network(batch[0]) - form(batch[0])).abs().max() <= 1e-12

    @pytest.mark.core
    @torch.no_grad()
    def test_constants_are_carried_on(self, two_blocks, batch):
        """A removal leaves constants at joints; the next ones fold them where a channel goes, whatever the gate then."""
        network = two_blocks.eval()
        for unit in network.units.values():
            unit.layer.weight = torch.nn.Parameter(unit.layer.weight[:, :, 1:2, 1:2].clone())
            unit.layer.padding, unit.layer.kernel_size = (0, 0), (1, 1)
        for number, mask in enumerate((WeightMask, WeightMask, OutputGate)):
            removal = Removal(masked_again(network, 0.3, number, mask))
            smaller = removal.compact()
            assert not removal.exact
            assert (network(batch[0]) - smaller(batch[0])).abs().max() <= 1e-12
            network = smaller
        assert any(joint.constant is not None for joint in network.joints.values())

    @torch.no_grad()
    @pytest.mark.parametrize("name", NETWORKS)
    def test_with_borders_it_is_nearer_than_without_the_fold(self, name):
        network = prepared(name, 3, 0.5, mask=WeightMask)
        x = torch.randn(4, 3, 32, 32, dtype=torch.float64)  # of small maps the border is the larger part
        removal = Removal(network)
        smaller = removal.compact()
        for constant in removal.channels.constants.values():
            constant.zero_()
        removal.channels.shifts = {}
        plain = removal.compact()
        masked = network(x)
        error, without = (masked - smaller(x)).abs().max(), (masked - plain(x)).abs().max()
        assert 0 < error < 0.7 * without


@pytest.mark.core
def test_single_weights_are_refused():
    network = copy.deepcopy(fresh("projection"))
    network.stem.gate = WeightMask(network.stem.weight.shape)
    with pytest.raises(ValueError, match="only whole filters"):
        Removal(network)


def masked_again(network, rate, seed, mask=OutputGate):
    """The smaller network with random masks, in place."""
    generator, decisions = torch.Generator().manual_seed(seed), Decisions(network, list(network.units), "free")
    for members in decisions.layers.values():
        keep = torch.rand(max(network.units[name].filters for name in members), generator=generator) >= rate
        for name in members:
            unit = network.units[name]
            unit.gate = mask(unit.filters) if mask is OutputGate else mask((unit.filters,))
            unit.gate.double().set(keep[: unit.filters])
    return network


@pytest.mark.core
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("residual", ["free", "grouped"])
@torch.no_grad()
def test_a_smaller_network_is_made_smaller_again(name, residual):
    """Four times, some branches dead: each time the outputs are the masked ones, and the size is what was counted."""
    network = prepared(name, 2, 0.3, residual, dead=[4, 9])
    x = images(network)
    for number in range(4):
        smaller = Removal(network).compact()
        assert (smaller(x) - network(x)).abs().max() <= 1e-10
        counted = accounting.remaining(network, x.shape[-1])
        assert accounting.count(smaller, accounting.positions(smaller, x.shape[-1])) == counted
        rebuilt = copy.deepcopy(fresh(name)).double().eval()
        rebuilt.reshape(smaller.shapes())
        rebuilt.load_state_dict(smaller.state_dict())
        assert (rebuilt(x) - smaller(x)).abs().max() <= 1e-12  # the layout of weights in memory decides on the order of sums
        network = masked_again(smaller, 0.25, number)


@pytest.mark.core
@torch.no_grad()
def test_two_removals_are_one(two_blocks, batch):
    """Whether filters go at once or one mask after the other, what is left computes the same and is as large."""
    network = two_blocks.eval()
    first, second = {}, {}
    for number, (name, unit) in enumerate(network.units.items()):
        first[name] = torch.arange(unit.filters) % 3 != number % 3
        second[name] = torch.arange(unit.filters) % 4 != number % 4
        unit.gate = OutputGate(unit.filters).double()
        unit.gate.set(first[name])
    removal = Removal(network)
    between = removal.compact()
    for name, unit in between.units.items():
        unit.gate = OutputGate(unit.filters).double()
        unit.gate.set(second[name][removal.channels.filters[name]])
    twice = Removal(between).compact()
    for name, unit in network.units.items():
        unit.gate.set(first[name] & second[name])
    once = Removal(network).compact()
    assert (twice(batch[0]) - once(batch[0])).abs().max() <= 1e-12
    assert {n: u.weight.shape for n, u in twice.units.items()} == {n: u.weight.shape for n, u in once.units.items()}


@pytest.mark.core
def test_a_joint_that_is_written_whole_again_has_no_index(two_blocks):
    """Block a wrote 2 of 4 channels; the stem's two others go, and nobody else writes them."""
    for unit in two_blocks.units.values():
        unit.gate = OutputGate(unit.filters).double()
    two_blocks.stem.gate.set(torch.tensor([1, 1, 1, 1, 0, 0]))
    two_blocks.a2.gate.set(torch.tensor([1, 1, 0, 0, 0, 0]))
    two_blocks.b2.gate.set(torch.tensor([1, 1, 0, 0, 0, 0]))
    smaller = Removal(two_blocks).compact()
    assert (smaller.a.width, smaller.a.index.tolist()) == (4, [0, 1])
    smaller.stem.gate = OutputGate(4).double()
    smaller.stem.gate.set(torch.tensor([1, 1, 0, 0]))
    smallest = Removal(smaller).compact()
    assert (smallest.a.width, smallest.a.index) == (None, None)
    assert smallest.classifier.weight.shape == (4, 2)


def test_the_copy_without_masks_is_the_whole_network():
    network = prepared("projection", 0, 0.5)
    whole = ungated(network)
    assert all(unit.gate is None for unit in whole.all_units.values())
    assert network.stem.gate is not None
    assert accounting.dense(whole, 32).parameters == 272_474 - 3 * 65
