"""These tests hold criteria against exact worked examples, and check what is true of all that read images."""

import bisect
import itertools

import pytest
import torch
from conftest import TwoBlocks, narrow
from torch import nn

import models
from models import Network, Unit
from models.layers import conv_unit, initialise
from pruning import OutputGate, Pruner, accounting
from pruning.context import Context, lift
from pruning.granularities import Structured
from pruning.removal import Removal
from pruning.scopes import global_
from settings.registry import CRITERIA

BY_BATCH = ("grad", "syn", "SNIP", "GraSP")  # these differentiate the loss with batch statistics
READERS = [name for name, entry in CRITERIA.entries.items() if "reads images" in entry.traits]


class OneLayer(Network):
    """A 1x1 convolution without bias or batch norm, its ReLU optional, averaged and classified."""

    def __init__(self, filters: int, inputs: int = 3, activation: bool = True, kernel: int = 1, classes: int = 2):
        super().__init__()
        layer = nn.Conv2d(inputs, filters, kernel, padding=kernel // 2, bias=False)
        self.first = Unit(layer, norm=False, activation=activation)
        self.classifier = Unit(nn.Linear(filters, classes), norm=False, activation=False)
        self.wire("first", "input", "first")
        self.wire("classifier", "first", "output")
        self.double().eval()

    def forward(self, x):
        return self.classifier(self.first(x).mean((2, 3)))


def shown(maps):
    """A network of one layer whose feature maps are these, (images, filters, height, width), and their context."""
    filters = maps.shape[1]
    network = OneLayer(filters, filters)
    network.first.layer.weight.data = torch.eye(filters, dtype=torch.float64)[:, :, None, None]
    labels = torch.zeros(len(maps), dtype=torch.int64)
    return network, Context(network, Structured.groups, lambda: iter([(maps.double(), labels)]), 0)


def weighed(weights):
    """A network of one layer with this weight, (filters, inputs, k, k), and its context."""
    weights = torch.as_tensor(weights, dtype=torch.float64)
    network = OneLayer(weights.shape[0], weights.shape[1], kernel=weights.shape[2])
    network.first.layer.weight.data = weights
    return network, Context(network, Structured.groups, None, 0)


def as_answered(network, batch, training=False):
    """The images, and what the network says they are, every class being some."""
    with torch.no_grad():
        network.train(training).classifier.layer.bias -= network(batch[0]).mean(0)
        return batch[0], network(batch[0]).argmax(1)


def score(criterion, network, context):
    return lift(CRITERIA.get(criterion))(network.units, context)["first"]


def test_norms():
    network, context = weighed([[[[1, -2], [0, 3]]], [[[0.5, 0.5], [-0.5, 0.5]]], [[[0, 0], [0, -5.0]]]])
    assert score("L1", network, context).tolist() == [6, 2, 5]
    torch.testing.assert_close(score("L2", network, context), torch.tensor([14**0.5, 1, 5], dtype=torch.float64))


def filters_of(*rows):
    return torch.tensor(rows, dtype=torch.float64)[:, :, None, None]


def test_the_geometric_median_is_not_the_smallest_norm():
    network, context = weighed(filters_of([0, 0], [1, 0], [10, 0]))
    assert score("FPGM", network, context).tolist() == [11, 10, 19]
    assert int(score("FPGM", network, context).argmin()) == 1
    assert int(score("L2", network, context).argmin()) == 0
    network, context = weighed(filters_of([1, 1], [1, -1], [3, 0], [-1, 0.2]))
    wanted = torch.tensor([6.390134, 6.568449, 8.477133, 8.491444], dtype=torch.float64)
    torch.testing.assert_close(score("FPGM", network, context), wanted, atol=1e-6, rtol=0)
    assert score("FPGM(distance='L1')", network, context).tolist() == pytest.approx([7.8, 8.2, 10.2, 10.2])
    # orthogonal, half-way and opposite directions: 1 - cosine
    network, context = weighed(filters_of([2, 0], [0, 3], [-1, 0]))
    assert score("FPGM(distance='cos')", network, context).tolist() == pytest.approx([3, 2, 3])


def test_cut_filters_are_no_neighbours_but_may_return():
    network, context = weighed(filters_of([0, 0], [0, 0], [1, 0], [10, 0], [4, 0]))
    Pruner(network, rate=0.2)
    network.first.gate.set(torch.tensor([0, 0, 1, 1, 1.0]))
    # zeros among themselves would be at distance 0 and stay cut for ever
    assert score("FPGM", network, context).tolist() == [15, 15, 12, 15, 9]
    network.first.gate.set(torch.ones(5))
    # a fifth goes by its norm: the first of the two zeros, last of all
    mixed = score("FPGM(by_norm=0.2)", network, context)
    assert mixed.tolist() == [-1, 15, 1 + 9 + 3, 10 + 9 + 6, 4 + 3 + 6]


def test_the_scale_of_batch_norm_whatever_its_sign(two_blocks):
    two_blocks.a1.norm.weight.data = torch.tensor([0.9, -0.05, 0.5, 0.4, 0.1], dtype=torch.float64)
    scores = lift(CRITERIA.get("bn_scale"))(two_blocks.units, None)
    assert scores["a1"].tolist() == [0.9, 0.05, 0.5, 0.4, 0.1]
    with pytest.raises(ValueError, match="needs batch norm"):
        score("bn_scale", *weighed([[[[1.0]]]]))


def test_a_copy_is_the_first_to_go():
    network, context = weighed(filters_of([1, 2, 4], [2, 4, 8], [3, -1, 0.5]))
    scores = score("correlation", network, context)
    rows = network.first.weight.detach().flatten(1)
    related = torch.corrcoef(rows).abs()
    torch.testing.assert_close(scores, 1 - (related.sum(1) - 1) / 2)
    assert int(scores.argmax()) == 2


def test_zeros_behind_the_relu():
    first = torch.tensor([[[0.0, 1], [2, 0]], [[1, 1], [1, 1]]])
    second = torch.tensor([[[0.0, 0], [0, 1]], [[0, 0], [0, 0]]])
    network, context = shown(torch.stack([first, second]))
    assert score("APoZ", network, context).tolist() == [1 - 0.625, 1 - 0.5]
    # mean .5625, deviation .0625: .625 is not above
    assert score("APoZ(counts='deviation')", network, context).tolist() == [True, True]
    assert score("mean_activation", network, context).tolist() == [0.5, 0.5]
    # the mostly silent filter goes, not the mostly active one
    maps = torch.zeros(1, 3, 4, 4)
    maps[0, 0, 0, 0], maps[0, 1], maps[0, 2] = 3.0, 0.1, 0.1
    network, context = shown(maps)
    assert int(score("APoZ", network, context).argmin()) == 0
    assert int(score("mean_activation", network, context).argmax()) == 0
    assert score("APoZ(counts='deviation')", network, context).tolist() == [False, True, True]


def test_ranks():
    maps = torch.zeros(1, 4, 4, 4)
    maps[0, 0], maps[0, 1] = torch.eye(4), 1.0
    maps[0, 3] = torch.diag(torch.tensor([1.0, 1, 0, 0]))
    network, context = shown(maps)
    assert score("HRank(ties='index')", network, context).tolist() == [4, 1, 0, 2]
    # float32's tolerance: 1e-8 is nothing beside 1
    small = torch.diag(torch.tensor([1.0, 1e-8, 1, 1]))[None, None]
    assert score("HRank(ties='index')", *shown(small)).tolist() == [3]
    two = torch.stack([torch.eye(4), torch.diag(torch.tensor([1.0, 1, 0, 0]))])[:, None]
    assert score("HRank(ties='index')", *shown(two)).tolist() == [3]
    # equal ranks: the stronger map stays, by less than half a rank in one image
    ties = score("HRank", *shown(torch.stack([torch.eye(4), 5 * torch.eye(4)])[None]))
    assert ties[1] > ties[0]
    assert torch.equal(ties.floor(), torch.tensor([4.0, 4], dtype=torch.float64))


def test_ranks_agree_with_linear_algebra():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(6, 5, 8, 8, generator=generator).relu() * (torch.rand(6, 5, 8, 1, generator=generator) > 0.4)
    found = score("HRank(ties='index')", *shown(maps))
    torch.testing.assert_close(found, torch.linalg.matrix_rank(maps).double().mean(0))
    nuclear = score("energy", *shown(maps))
    torch.testing.assert_close(nuclear, torch.linalg.svdvals(maps.double()).sum(-1).mean(0))


def test_energy():
    maps = torch.zeros(2, 3, 2, 2)
    maps[0, 0], maps[1, 0] = torch.diag(torch.tensor([3.0, 4])), 1.0
    maps[:, 1] = 1
    assert score("energy", *shown(maps)).tolist() == pytest.approx([4.5, 2, 0])


def activation_times_gradient(monkeypatch, activations, gradients):
    """A context that gives these."""
    network, context = shown(activations)
    monkeypatch.setattr(context, "sensitivities", lambda units, statistic: {"first": statistic(activations, gradients)})
    return network, context


def test_taylor_2017(monkeypatch):
    h = torch.tensor([[[[1.0, 2], [0, 1]], [[1, 1], [1, 1]]]])
    g = torch.tensor([[[[1.0, -1], [2, 0]], [[0.5, 0.5], [0.5, 0.5]]]])
    network, context = activation_times_gradient(monkeypatch, h, g)
    assert score("Taylor2017", network, context).tolist() == pytest.approx([0.447214, 0.894427], abs=1e-6)
    by_position = score("Taylor2017(inside='position')", network, context)
    assert (by_position / by_position[1] * 0.5).tolist() == pytest.approx([0.75, 0.5])  # the order turns
    # two images, means +1 and -1
    network, context = activation_times_gradient(
        monkeypatch, torch.tensor([1.0, -1, 1, 1]).view(2, 2, 1, 1), torch.ones(2, 2, 1, 1)
    )
    image, whole = (score(f"Taylor2017(inside='{what}')", network, context) for what in ("image", "sample"))
    assert image[0] == image[1] > 0
    assert whole.tolist() == [1, 0]


def test_taylor_2017_with_flops():
    """A feature map costs 2 HW (k k inputs + 1)."""
    network, context = shown(torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    network.classifier.layer.weight.data = torch.tensor([[1.0, 2, 3], [0, 1, 0]], dtype=torch.float64)
    plain, costly = (score(f"Taylor2017{how}", network, context) for how in ("", "(flops=1000.0)"))
    torch.testing.assert_close(plain - costly, torch.full((3,), 1000 * 1e-9 * 2 * 16 * 4, dtype=torch.float64))


def test_taylor_2019(monkeypatch):
    network, context = weighed(filters_of([1, -2]))
    context.gradients_as_tested = {network.first: torch.tensor([0.5, 0.5], dtype=torch.float64)[None, :, None, None]}
    assert score("Taylor2019(at='weight')", network, context).tolist() == [1.25]
    assert score("Taylor2019(at='filter')", network, context).tolist() == [0.25]
    # behind batch norm gamma x + beta, the gate's gradient is gamma dL/dgamma + beta dL/dbeta
    h = torch.tensor([1.0, 2, 3, 0]).view(2, 1, 2, 1)
    g = torch.tensor([1.0, 1, -1, 5]).view(2, 1, 2, 1)
    network, context = activation_times_gradient(monkeypatch, h, g)
    assert score("Taylor2019(average='image')", network, context).tolist() == [(3**2 + (-3) ** 2) / 2]
    assert score("Taylor2019", network, context).tolist() == [0]  # of the batch's mean loss: (3 - 3) / 2


@pytest.mark.parametrize("average", ["image", "batch"])
def test_the_gate_is_the_derivative_of_the_loss(two_blocks, batch, average):
    """(dL/dz)^2 by differences, for a gate behind batch norm and ReLU: L of each image, or the mean of each batch of 8."""
    images, labels = batch
    two_blocks.eval()
    context = Context(two_blocks, Structured.groups, lambda: iter([(images[:8], labels[:8]), (images[8:], labels[8:])]), 0)
    scores = lift(CRITERIA.get(f"Taylor2019(average='{average}')"))(two_blocks.units, context)

    def losses(scale):
        for norm in (two_blocks.a1.norm,):
            norm.weight.data[1] *= scale
            norm.bias.data[1] *= scale
        with torch.no_grad():
            found = nn.functional.cross_entropy(two_blocks(images), labels, reduction="none")
        norm.weight.data[1] /= scale
        norm.bias.data[1] /= scale
        return found

    slope = (losses(1 + 1e-6) - losses(1 - 1e-6)) / 2e-6
    slope = slope if average == "image" else slope.view(2, 8).mean(1)
    torch.testing.assert_close(scores["a1"][1], slope.square().mean(), rtol=1e-5, atol=1e-12)


def responding(columns):
    """Responses of one pixel, (8 images, filters): each filter a sum of three uncorrelated signs, raised above 0."""
    signs = torch.tensor([[1, 1, 1, 1, -1, -1, -1, -1], [1, 1, -1, -1, 1, 1, -1, -1], [1, -1, 1, -1, 1, -1, 1, -1]])
    signs = torch.cat([signs, signs.prod(0, keepdim=True)]).double()
    return (torch.tensor(columns, dtype=torch.float64) @ signs).T[..., None, None] + 10


@pytest.mark.parametrize(
    ("spectrum", "criterion", "kept"),
    [
        ([4, 0, 0, 0], "PFA(counts='KL')", 1),
        ([1, 1, 1, 1], "PFA(counts='KL')", 4),
        ([2, 1, 1, 0], "PFA(counts='KL')", 3),
        ([3, 1, 0, 0], "PFA(counts='KL')", 2),
        ([3, 1, 0, 0], "PFA(counts='energy', tau=0.75)", 1),
        ([3, 1, 0, 0], "PFA(counts='energy', tau=0.8)", 2),
    ],
)
def test_pfa_counts(spectrum, criterion, kept):
    """Uncorrelated responses with these variances, which are the eigenvalues: how many filters they ask for."""
    network, context = shown(responding(torch.tensor(spectrum).double().sqrt().diag().tolist()))
    assert int(score(criterion, network, context).sum()) == kept


def test_pfa_drops_what_others_say():
    # 0 says what 1 says and a little of what 2 does, which have nothing in common; 3 is silent
    network, context = shown(responding([[1, 0.2, 0, 0], [1, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 0]]))
    assert score("PFA", network, context).argsort().tolist() == [3, 0, 1, 2]
    responses = torch.tensor([[2.0, 1, 0], [0, 0, 1], [4, 2, 1], [2, 1, 3.0], [1, 0.5, 0]])[..., None, None]
    network, context = shown(responses)
    order = score("PFA", network, context).tolist()
    assert sorted(order) == pytest.approx([1 / 3, 2 / 3, 1])
    assert order[2] > min(order[:2])  # of the two that say the same, one goes first
    one = score("PFA(counts='energy', tau=0.5)", network, context)
    assert int(one.sum()) == 1
    alike, context = shown(responding([[2, 0, 0, 0], [1, 0, 0, 0]]))  # one eigenvalue holds all
    for criterion in ("PFA(counts='KL')", "PFA(counts='energy', tau=0.99)"):
        assert int(score(criterion, alike, context).sum()) == 1
    with pytest.raises(ValueError, match="PFA needs more images than a layer has filters, 3; there are 3"):
        Pruner(network, criterion="PFA", rate=0.3).check_sample(3)


class Chain(Network):
    """Two linear layers behind a 1x1 convolution: what NISP's published example propagates through."""

    def __init__(self):
        super().__init__()
        self.first = Unit(nn.Conv2d(3, 3, 1, bias=False), norm=False)
        self.hidden = Unit(nn.Linear(3, 2), norm=False)
        self.classifier = Unit(nn.Linear(2, 2), norm=False, activation=False)
        self.wire("first", "input", "first")
        self.wire("hidden", "first", "hidden")
        self.wire("classifier", "hidden", "output")
        self.double()

    def forward(self, x):
        return self.classifier(self.hidden(self.first(x).mean((2, 3))))


class Weighted(Chain):
    """The same with one more layer, whose weights are the importance of what it reads where all of its outputs count alike."""

    def __init__(self, importance):
        super().__init__()
        self.links.pop()
        self.scale = Unit(nn.Linear(2, 2), norm=False)
        self.wire("scale", "hidden", "scale")
        self.wire("classifier", "scale", "output")
        self.double()
        self.scale.layer.weight.data = torch.diag(torch.tensor(importance, dtype=torch.float64))

    def forward(self, x):
        return self.classifier(self.scale(self.hidden(self.first(x).mean((2, 3)))))


@pytest.mark.parametrize(("final", "wanted"), [([1, 0.5], [2.5, 2, 0.5]), ([1, 0], [1, 2, 0])])
def test_importance_goes_back_with_absolute_weights(final, wanted):
    network = Weighted(final)
    network.hidden.layer.weight.data = torch.tensor([[1.0, -2, 0], [3, 0, -1]], dtype=torch.float64)
    context = Context(network, Structured.groups, lambda: iter([(torch.rand(4, 3, 2, 2).double(), torch.zeros(4).long())]), 0)
    scores = score("NISP(last='equal')", network, context)
    torch.testing.assert_close(scores, torch.tensor(wanted, dtype=torch.float64))


def selected(values):
    """Infinite feature selection by brute force, of values (images, channels): the row sums of all powers of the graph."""
    images, channels = values.shape
    ranks = torch.empty_like(values)
    for image, channel in itertools.product(range(images), range(channels)):
        column = values[:, channel]
        below, equal = (column < column[image]).sum(), (column == column[image]).sum()
        ranks[image, channel] = below + (equal - 1) / 2
    spearman = torch.corrcoef(ranks.T).nan_to_num(0.0)  # a constant channel has no correlation
    deviation = values.std(0)
    graph = 0.5 * torch.maximum(deviation, deviation[:, None]) + 0.5 * (1 - spearman.abs())
    factor, power, total = 0.9 / torch.linalg.eigvalsh(graph).abs().max(), torch.eye(channels).double(), 0
    for _ in range(400):  # 0.9^400 is 5e-19
        power = power @ (factor * graph)
        total = total + power.sum(1)
    return total


@pytest.mark.parametrize("constant", [False, True])
def test_infinite_feature_selection(constant):
    values = torch.tensor([[3.0, 1, 2], [1, 1, 0], [2, 5, 1], [2, 0, 7]], dtype=torch.float64)
    if constant:
        values[:, 2] = 1
    network, context = shown(values[..., None, None])
    torch.testing.assert_close(score("NISP", network, context), selected(values), rtol=1e-9, atol=0)


def test_importance_is_that_of_a_linear_network(batch):
    """Against autograd: without ReLU's and batch norm's effect, NISP is the gradient of the summed final channels for |W|."""
    network = TwoBlocks().double()
    images, labels = batch
    context = Context(network, Structured.groups, lambda: iter([(images, labels)]), 0)
    scores = lift(CRITERIA.get("NISP(last='equal')"))(network.units, context)
    linear = TwoBlocks().double().eval()
    linear.load_state_dict(network.state_dict())
    for unit in linear.units.values():
        unit.layer.weight.data.abs_()
        unit.norm = None
    seen = {}
    for name, unit in linear.units.items():
        unit.register_forward_hook(lambda _, __, y, name=name: seen.update({name: y.requires_grad_(True)}))
    final = {}
    linear.classifier.register_forward_pre_hook(lambda _, x: final.update({"x": x[0]}))
    linear(torch.ones(1, 3, 8, 8, dtype=torch.float64))
    gradients = torch.autograd.grad(final["x"].sum(), [seen[name] for name in linear.units])
    for name, gradient in zip(linear.units, gradients, strict=True):
        torch.testing.assert_close(scores[name], gradient[0].sum((1, 2)), msg=name)


def test_what_nobody_reads_and_what_was_cut_pass_nothing_on():
    network = Chain()
    network.hidden.layer.weight.data = torch.tensor([[1.0, -2, 0], [3, 0, -1]], dtype=torch.float64)
    context = Context(network, Structured.groups, lambda: iter([(torch.rand(4, 3, 2, 2).double(), torch.zeros(4).long())]), 0)
    everything = score("NISP(last='equal')", network, context)
    half = score("NISP(last='equal', rate=0.5)", network, context)
    assert everything.tolist() == [4, 2, 1]
    # of two equal neurons the first is set to 0
    assert half.tolist() == [3, 0, 1]


def test_an_offset_for_a_layer_turns_the_order_of_removal():
    """Layers [1, 4] and [2, 3], one filter after the other: with 2.5 on the first one its best goes last still."""
    order = {0.0: ["a0", "b0", "b1", "a1"], 2.5: ["b0", "b1", "a0", "a1"]}
    for offset, wanted in order.items():
        scores = {"a": torch.tensor([1.0, 4.0]) + offset, "b": torch.tensor([2.0, 3.0])}
        gone = []
        for k in range(1, 5):
            keep = global_(scores, k / 4, normalise="none", floor=0)
            cut = {f"{name}{place}" for name, mask in keep.items() for place in (~mask).nonzero().flatten().tolist()}
            gone += sorted(cut - {*gone})
        assert gone == wanted


@pytest.mark.parametrize("learn", ["offset", "scale_and_offset"])
def test_the_search_never_ends_above_where_it_began(two_blocks, batch, learn):
    """A layer that is small for no reason, as batch norm undoes it, is emptied by the raw norm."""
    unit = two_blocks.a1
    for value, factor in ((unit.weight, 0.01), (unit.norm.running_mean, 0.01), (unit.norm.running_var, 0.0001)):
        value.data *= factor
    unit.norm.eps *= 0.0001
    batch = as_answered(two_blocks, batch, training=True)
    pruner = Pruner(two_blocks, criterion=f"LcP(learn='{learn}')", scope="global(normalise='none', floor=0)", rate=0.3)
    pruner.begin(1, 4, lambda: iter([batch]))
    context = Context(two_blocks, Structured.groups, pruner.sample, 0, None)

    def loss(scores):
        with context.under(global_(scores, 0.3, normalise="none", floor=0)):
            return context.measure(training=True)[0]

    plain = lift(CRITERIA.get("L2"))(two_blocks.units, context)
    assert loss(pruner.scores(0.3)) < loss(plain)
    for name, moved in pruner.scores(0.3).items():
        # within a layer nothing but the criterion ranks
        assert torch.equal(moved.argsort(), plain[name].argsort())


def test_the_rule_of_several_layers():
    """sF = [1, .75, .75, .25], sG = [0, 1, .5, 1]."""
    own = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1], [0, 1, 1, 1]], dtype=torch.float64)
    reads = torch.tensor([[1.0, 0, 1, 0], [1, 0, 0, 0]], dtype=torch.float64)
    network = OneLayer(4, 4)
    network.first.layer.weight.data = own[:, :, None, None]
    network.classifier.layer.weight.data = reads
    context = Context(network, Structured.groups, None, 0)
    rule = "zero_fraction(counts='multilayer', threshold=0.1, own=0.9, own_at_least={}, readers=0.9)"
    assert score(rule.format(0.7), network, context).tolist() == [False, False, True, True]
    assert score(rule.format(0.0), network, context).tolist() == [False, False, True, False]
    for fraction, kept in ((0.5, [False, False, True, True]), (0.51, [False, True, True, True]), (1.0, [True] * 4)):
        at_least = f"{rule.format(0.7)[:-1]}, least_left={fraction})"
        assert score(at_least, network, context).tolist() == kept
    emptied = "zero_fraction(counts='multilayer', threshold=2.0, least_left={})"
    assert [int(score(emptied.format(fraction), network, context).sum()) for fraction in (0.0, 0.25, 0.6)] == [1, 1, 3]
    scores = score("zero_fraction(threshold=0.1)", network, context)
    assert torch.equal(score("zero_fraction(threshold=1.0)", network, context), scores)  # strictly below
    assert scores.tolist() == pytest.approx([1 - 0.5, 1 - 0.875, 1 - 0.625, 1 - 0.625])


def test_the_rule_reads_where_a_smaller_network_writes(two_blocks):
    """After removal block a writes channels 0 and 2 of four: its G counts those columns of what reads the stream behind it."""
    for unit in two_blocks.units.values():
        unit.gate = OutputGate(unit.filters).double()
    two_blocks.stem.gate.set(torch.tensor([0, 0, 1, 1, 1, 1]))
    two_blocks.a2.gate.set(torch.tensor([0, 0, 1, 0, 1, 0]))
    network = Removal(two_blocks).compact()
    assert network.a.index.tolist() == [0, 2]
    context = Context(network, Structured.groups, None, 0)
    scores = lift(CRITERIA.get("zero_fraction(threshold=0.05)"))(network.units, context)
    small = {name: (unit.weight.abs() < 0.05).double() for name, unit in network.all_units.items()}
    for number, channel in enumerate((0, 2)):
        reads = torch.cat([small[name][:, channel].flatten() for name in ("b1", "classifier")])
        wanted = 1 - (small["a2"][number].mean() + reads.mean()) / 2
        assert scores["a2"][number].item() == pytest.approx(wanted.item())
    below = torch.cat([small[name].flatten() for name in network.units]).mean()
    of_filters = torch.cat([small[name].flatten(1).mean(1) for name in network.units])
    least, middle, most = of_filters.min().item(), of_filters.median().item(), of_filters.max().item()
    assert context.record == {
        "threshold": 0.05,
        "below": pytest.approx(below.item()),
        "of_filters": pytest.approx([least, middle, most]),
    }
    assert least < middle < most
    rule = "zero_fraction(counts='multilayer', threshold=0.05, own=0.3, own_at_least=0.1, readers=0.2)"
    keep = lift(CRITERIA.get(rule))(network.units, context)
    assert {name: mask.shape for name, mask in keep.items()} == {name: (unit.filters,) for name, unit in network.units.items()}
    # block b reads the channels that the stem or block a still write
    alive = keep["stem"].clone()
    alive[[0, 2]] |= keep["a2"]
    own = small["b1"][:, alive].flatten(1).mean(1)
    reads = small["b2"].transpose(0, 1).flatten(1).mean(1)
    assert torch.equal(keep["b1"], (own < 0.1) | ((own < 0.3) & (reads < 0.2)))


def test_the_threshold_is_found_at_no_loss(two_blocks, batch):
    """What was searched for gives the scores of one of the thresholds between two weights: at that one nothing is lost."""
    batch = as_answered(two_blocks, batch)
    context = Context(two_blocks, Structured.groups, lambda: iter([batch]), 0)
    before = {name: value.clone() for name, value in two_blocks.state_dict().items()}
    right = context.measure()[1]

    def zeros(criterion):
        return -sum(float(part.sum()) for part in lift(CRITERIA.get(criterion))(two_blocks.units, context).values())

    careful, careless = (zeros(f"zero_fraction(drop={drop})") for drop in (0.0, 1.0))
    assert careful < careless
    assert all(torch.equal(before[name], value) for name, value in two_blocks.state_dict().items())
    sizes = torch.cat([unit.weight.detach().abs().flatten() for unit in two_blocks.all_units.values()]).sort().values
    between = ((sizes[1:] + sizes[:-1]) / 2).tolist()
    place = bisect.bisect_left(between, careful, key=lambda threshold: zeros(f"zero_fraction(threshold={threshold})"))
    assert zeros(f"zero_fraction(threshold={between[place]})") == careful
    with torch.no_grad():
        for unit in two_blocks.units.values():
            unit.weight.mul_(unit.weight.abs() >= between[place])
    assert context.measure()[1] >= right


@pytest.mark.parametrize("criterion", [name for name in READERS if name not in BY_BATCH])
def test_neither_the_order_nor_the_size_of_batches_matters(two_blocks, batch, criterion):
    """But for those that are measured with batch statistics."""
    images, labels = batch
    if criterion == "LcP":  # what it tries out is seen on the first batch
        return
    if criterion == "Taylor2019":  # by default it squares the gradient of a batch
        criterion = "Taylor2019(average='image')"
    results = []
    for order, size in ((torch.arange(16), 16), (torch.arange(16).flip(0), 5)):
        parts = [order[start : start + size] for start in range(0, 16, size)]
        pruner = Pruner(two_blocks, criterion=criterion, rate=0.4)
        pruner.begin(1, 4, lambda parts=parts: iter([(images[part], labels[part]) for part in parts]))
        pruner.gates["a1"].set(torch.tensor([1, 0, 1, 1, 0]))
        results.append(pruner.scores())
        for unit in two_blocks.units.values():
            unit.gate = None
    for name, found in results[0].items():
        torch.testing.assert_close(found, results[1][name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("criterion", [name for name in READERS if name not in (*BY_BATCH, "NISP", "zero_fraction", "LcP")])
def test_maps_are_seen_before_their_own_mask(two_blocks, batch, criterion):
    """So that what was cut may return: a filter's score does not depend on its own mask."""
    pruner = Pruner(two_blocks, criterion=criterion, rate=0.4)
    pruner.begin(1, 4, lambda: iter([batch]))
    for gate in pruner.gates.values():
        gate.straight_through = True
    dense = pruner.scores()
    pruner.gates["stem"].set(torch.tensor([1, 1, 0, 1, 1, 1]))
    masked = pruner.scores()
    if criterion.startswith(("Taylor", "OB")):  # the loss is another one
        assert masked["stem"][2] > 0
    else:
        torch.testing.assert_close(masked["stem"], dense["stem"])


def test_a_stream_is_seen_behind_its_relu(two_blocks, batch):
    images, labels = batch
    two_blocks.eval()
    context = Context(two_blocks, Structured.groups, lambda: iter([(images, labels)]), 0)
    maps = context.responses(two_blocks.units, lambda maps: maps)
    seen = {}
    for name in ("stem", "a1", "a", "b1", "b"):
        two_blocks.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: seen.update({name: y.clone()}))
    two_blocks(images)
    for unit, place in {"stem": "stem", "a1": "a1", "a2": "a", "b1": "b1", "b2": "b"}.items():
        torch.testing.assert_close(maps[unit], seen[place])


def test_a_projection_is_seen_in_the_stream_it_begins():
    class Projected(Network):
        def __init__(self):
            super().__init__()
            from models import Joint

            self.stem, self.branch = conv_unit(3, 4, 3), conv_unit(4, 5, 3, activation=False)
            self.projection, self.joint = conv_unit(4, 5, 1, activation=False), Joint()
            self.classifier = Unit(nn.Linear(5, 2), norm=False, activation=False)
            self.wire("stem", "input", "stem")
            self.wire("projection", "stem", "stream")
            self.wire("branch", "stem", "stream", "joint")
            self.wire("classifier", "stream", "output")
            initialise(self)

        def forward(self, x):
            x = self.stem(x)
            return self.classifier(self.joint(self.branch(x), self.projection(x)).mean((2, 3)))

    network = Projected().double()
    images = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    context = Context(network, Structured.groups, lambda: iter([(images, torch.zeros(3).long())]), 0)
    maps = context.responses(network.units, lambda maps: maps)
    assert torch.equal(maps["projection"], maps["branch"])
    assert (maps["branch"] >= 0).all()


@pytest.mark.parametrize("arch", ["resnet20(shortcut='pad')", "resnet50", "vgg16"])
def test_every_criterion_on_every_kind_of_network_ends_in_a_smaller_one(arch):
    """And the rules that find their own counts; PFA asks for more images than a layer has filters."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(6, 3, 32, 32, generator=generator), torch.randint(10, (6,), generator=generator)
    rules = ["APoZ(counts='deviation')", "zero_fraction(counts='multilayer', threshold=0.02, own=0.14, own_at_least=0.14)"]
    names = [*CRITERIA.entries, *rules]
    names[names.index("LcP")] = "LcP(evaluations=2)"
    names.remove("PFA")
    if arch == "resnet50":  # those that read the wiring, on its bottlenecks
        names = ["Taylor2019", "NISP", *rules]
    network = models.build(arch) if arch.startswith("resnet20") else narrow(models.build(arch), 4)
    whole = accounting.dense(network, 32)
    for name in names:
        for unit in network.units.values():
            unit.gate = None
        pruner = Pruner(network, criterion=name, rate=0.3)
        pruner.begin(1, 4, lambda: iter([(images, labels)]))
        pruner.update(0.3)
        smaller = Removal(network).compact().eval()
        assert accounting.dense(smaller, 32).macs < whole.macs, name
        with torch.no_grad():
            torch.testing.assert_close(smaller(images), network.eval()(images), rtol=1e-3, atol=1e-3, msg=name)


def test_pfa_finds_counts_on_a_network(two_blocks, batch):
    """Copies of a filter say nothing new: KL keeps fewer where a layer repeats itself."""
    kept = []
    for copies in (False, True):
        if copies:
            for norm in (two_blocks.a1.norm,):
                for value in (two_blocks.a1.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var):
                    value.data[1:] = value.data[:1]
        two_blocks.a1.gate = None
        pruner = Pruner(two_blocks, criterion="PFA(counts='KL')", rate=0)
        pruner.begin(1, 4, lambda: iter([batch]))
        kept.append(int(pruner.scores()["a1"].sum()))
        for unit in two_blocks.units.values():
            unit.gate = None
    assert kept[0] > kept[1] == 1


def test_moving_masks_score_live_filters_as_fixed_ones_do(two_blocks, batch):
    """What cut filters would learn goes to their own scores only."""
    pruner = Pruner(two_blocks, criterion="Taylor2019", rate=0.4)
    pruner.begin(1, 4, lambda: iter([batch]))
    pruner.update(0.4)
    scores = []
    for moving in (False, True):
        for gate in pruner.gates.values():
            gate.straight_through = moving
        scores.append(pruner.scores())
    for name, gate in pruner.gates.items():
        live = gate.mask.bool()
        torch.testing.assert_close(scores[1][name][live], scores[0][name][live])
        assert (scores[0][name][~live] == 0).all()
    cut = {name: gate.mask == 0 for name, gate in pruner.gates.items()}
    assert sum(int((scores[1][name][cut[name]] > 0).sum()) for name in cut) > 5


def test_importance_does_not_overflow_in_deep_networks():
    network = models.build("resnet110")
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pruner = Pruner(network, criterion="NISP", rate=0.5)
    pruner.begin(1, 4, lambda: iter([(images, torch.zeros(4).long())]))
    scores = pruner.scores()
    assert max(float(score.max()) for score in scores.values()) > 1e38  # beyond float32
    pruner.update(0.5)
    kept = [float(gate.mask.mean()) for gate in pruner.gates.values()]
    assert max(kept) < 1
    assert min(kept) > 0.1
