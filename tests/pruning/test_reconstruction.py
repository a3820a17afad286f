"""What repairs a cut: worked examples of the papers' formulas, brute force, and whole toy networks."""

import copy
from itertools import combinations

import pytest
import torch
from conftest import TwoBlocks
from torch import nn
from toys import TOYS, images_for, outputs_of, toy

import models
from models.layers import conv_unit, initialise
from pruning import OutputGate
from pruning.layer_order import Layer, layers_of
from pruning.readers import Reader, nearest_change, put, values_at, windows
from pruning.removal import Removal, ungated
from pruning.repair import Problem, Repair, check
from settings.registry import RECONSTRUCTIONS

pytestmark = pytest.mark.core


def reader_of(terms, wanted=None, filters=1):
    """A reader of 1x1 windows whose weights are 1, so that each channel adds its input."""
    inputs = torch.tensor(terms, dtype=torch.float64)[..., None]
    weight = torch.ones(filters, inputs.shape[1], 1, dtype=torch.float64)
    wanted = inputs.sum((1, 2)) if wanted is None else torch.tensor(wanted, dtype=torch.float64)
    return Reader(weight, inputs, wanted[:, None].expand(-1, filters), torch.zeros(len(inputs), dtype=torch.int64))


def solve(method, readers, keep, chosen=True):
    """Which channels a method keeps, and the new weights of the readers."""
    problem = Problem(torch.tensor(keep, dtype=torch.bool), chosen, lambda rows, images: readers, None, None)
    kept, weights = RECONSTRUCTIONS.get(method)(problem)
    return kept.nonzero().flatten().tolist(), weights


A = [[1, 0, 3], [0, 1, 2], [1, 1, 1]]  # and Y is their sum, 4 3 3
B = [[2, -2.1, 0.1], [1, -0.9, 1], [3, -3, 0.5]]


@pytest.mark.parametrize(("search", "count", "kept", "factors", "error"), [
    ("removal", 2, [1, 2], [21 / 19, 24 / 19], 16 / 19),
    ("removal", 1, [2], [1.5], 2.5),
    ("forward", 2, [1, 2], [21 / 19, 24 / 19], 16 / 19),
    ("forward", 1, [2], [1.5], 2.5),
])  # fmt: skip
@pytest.mark.parametrize("target", ["own", "original"])
def test_thinet_as_worked_out_by_hand(search, target, count, kept, factors, error):
    reader = reader_of(A)
    assert reader.wanted[:, 0].tolist() == [4, 3, 3]
    got, (weight,) = solve(f"thinet(search='{search}', target='{target}')", [reader], [1] * count + [0] * (3 - count))
    assert got == kept
    assert weight[0, kept, 0].tolist() == pytest.approx(factors)
    assert float((reader.wanted - reader.product(torch.tensor([n in kept for n in range(3)]), weight)).square().sum()) == (
        pytest.approx(error)
    )


def test_the_objective_of_thinet_is_the_sum_of_what_is_out():
    terms = torch.tensor(A, dtype=torch.float64)
    assert terms.square().sum(0).tolist() == [2, 2, 14]
    assert float(terms[:, 0].square().sum()) == 2  # ties with channel 1: the lower index goes
    assert float(terms[:, :2].sum(1).square().sum()) == 6


def test_thinet_is_greedy_where_that_is_not_the_best():
    terms = torch.tensor(B, dtype=torch.float64)
    costs = {out: float(terms[:, list(out)].sum(1).square().sum()) for out in combinations(range(3), 2)}
    assert min(costs, key=costs.get) == (0, 1)
    assert costs[0, 1] == pytest.approx(0.02)
    assert costs[1, 2] == pytest.approx(10.26)
    assert solve("thinet", [reader_of(B)], [1, 1, 0])[0] == [0, 1]  # channel 2 goes first
    assert solve("thinet", [reader_of(B)], [1, 0, 0])[0] == [0]  # then channel 1


def test_what_is_wanted_may_be_another_product_than_the_networks_own():
    reader = reader_of(A, wanted=[8, 6, 6])
    _, (own,) = solve("thinet(target='own')", [reader], [1, 1, 1])
    _, (original,) = solve("thinet(target='original')", [reader], [1, 1, 1])
    assert own.flatten().tolist() == pytest.approx([1, 1, 1])
    assert original.flatten().tolist() == pytest.approx([2, 2, 2])


Z = [[2, 0], [0, 1], [2, 0], [0, -1]]


@pytest.mark.parametrize(("alpha", "beta"), [(0.1, [0.95, 0.8]), (0.4, [0.8, 0.2]), (0.5, [0.75, 0]), (1, [0.5, 0]), (2, [0, 0])])
def test_the_lasso_as_worked_out_by_hand(alpha, beta):
    """scikit-learn's objective is the paper's: beta = soft(z, alpha) / g where columns are orthogonal."""
    from sklearn.linear_model import Lasso

    columns = torch.tensor(Z, dtype=torch.float64)
    fitted = Lasso(alpha=alpha, fit_intercept=False, tol=1e-12).fit(columns.numpy(), columns.sum(1).numpy())
    assert fitted.coef_.tolist() == pytest.approx(beta, abs=1e-9)


def test_the_lasso_keeps_the_channel_that_the_paper_keeps():
    kept, (weight,) = solve("lasso", [reader_of(Z)], [1, 0])
    assert kept == [0]
    assert float(weight[0, 0, 0]) == pytest.approx(1, abs=1e-12)  # columns are orthogonal


def test_the_lasso_looks_at_all_filters():
    """Channel 1 is large for a filter that the drawn ones do not show."""
    reader = reader_of(A, filters=2)
    reader.weight[1] = torch.tensor([0.0, 9.0, 0.0])[:, None]
    reader.wanted = reader.product(torch.ones(3, dtype=torch.bool), reader.weight)
    assert solve("lasso", [reader], [1, 0, 0])[0] == [1]
    assert solve("thinet", [reader], [1, 0, 0])[0] == [2]


@pytest.mark.parametrize("method", ["thinet", "thinet(search='forward')", "lasso"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_choice_is_that_of_brute_force_where_channels_do_not_interact(method, count):
    """Columns are orthogonal and of different sizes: the least error of all subsets is found by every search."""
    basis, _ = torch.linalg.qr(torch.randn(30, 5, dtype=torch.float64))
    terms = basis * torch.tensor([3.0, 0.5, 2.0, 5.0, 1.0])
    best = min(combinations(range(5), count), key=lambda keep: float((terms.sum(1) - terms[:, list(keep)].sum(1)).square().sum()))
    assert solve(method, [reader_of(terms.tolist())], [1] * count + [0] * (5 - count))[0] == list(best)


@pytest.mark.parametrize("count", [0, 1, 5, 9, 12])
def test_the_lasso_keeps_exactly_so_many_also_where_columns_are_alike_or_dead(count):
    inputs = torch.randn(40, 12, 4, dtype=torch.float64)
    inputs[:, 3], inputs[:, 7], inputs[:, 5] = inputs[:, 2], inputs[:, 2], 0
    weight = torch.randn(6, 12, 4, dtype=torch.float64)
    weight[:, 3] = weight[:, 7] = weight[:, 2]
    for scale in (1e-6, 1.0, 1e6):  # alpha's start is none of the data's
        reader = Reader(weight, inputs * scale, torch.randn(40, 6, dtype=torch.float64), torch.zeros(40, dtype=torch.int64))
        kept, _ = solve("lasso", [reader], [1] * count + [0] * (12 - count))
        assert len(kept) == count
        assert 5 not in kept or count == 12


def random_reader(samples=200, channels=8, patch=3, filters=5):
    weight = torch.randn(filters, channels, patch, dtype=torch.float64)
    inputs = torch.randn(samples, channels, patch, dtype=torch.float64).relu()
    wanted = torch.randn(samples, filters, dtype=torch.float64) + (inputs.flatten(1) @ weight.flatten(1).T)
    return Reader(weight, inputs, wanted, torch.randint(filters, (samples,)))


def test_several_readers_are_solved_for_at_once():
    """Channel 0 is much to one reader and channel 1 to another, which together keep both; each alone keeps channel 2."""
    first = reader_of([[9, 0, 1], [9, 0, -1]])
    second = reader_of([[0, 9, 1], [0, 9, -1]])
    for method in ("thinet", "thinet(search='forward')", "lasso"):
        assert solve(method, [first, second], [1, 1, 0])[0] == [0, 1]
        assert solve(method, [first], [1, 1, 0])[0] == [0, 2]


@pytest.mark.parametrize("method", ["least_squares", "lasso", "thinet(target='original')"])
def test_the_error_is_never_above_that_before(method):
    for _ in range(5):
        reader = random_reader()
        kept, (weight,) = solve(method, [reader], [1, 0, 1, 0, 1, 1, 0, 0])
        keep = torch.tensor([n in kept for n in range(8)])
        # thinet's factors are fitted to the drawn filters
        places = reader.drawn[:, None] if "thinet" in method else torch.arange(5).expand(200, -1)
        errors = [(reader.wanted - reader.product(keep, w)).gather(1, places).square().sum() for w in (reader.weight, weight)]
        assert errors[1] < errors[0]


def test_least_squares_are_those_of_torch_and_keep_the_choice():
    reader = random_reader()
    kept, (weight,) = solve("least_squares", [reader], [1, 0, 1, 0, 1, 1, 0, 0])
    assert kept == [0, 2, 4, 5]
    wanted = torch.linalg.lstsq(reader.inputs[:, kept].flatten(1), reader.wanted).solution.T.reshape(5, 4, 3)
    assert torch.allclose(weight[:, kept], wanted)
    assert torch.equal(weight[:, [1, 3, 6, 7]], reader.weight[:, [1, 3, 6, 7]])


def test_with_constants_what_varies_is_fitted():
    reader = random_reader()
    reader.wanted = reader.wanted + 50
    reader.constant = True
    _, (weight,) = solve("least_squares", [reader], [1] * 8)
    columns = torch.cat([reader.inputs.flatten(1), torch.ones(200, 1, dtype=torch.float64)], 1)
    wanted = torch.linalg.lstsq(columns, reader.wanted).solution.T
    assert torch.allclose(weight.flatten(1), wanted[:, :-1])
    lacks, constants = reader.missing(torch.ones(8, dtype=torch.bool), weight)
    assert torch.allclose(constants, wanted[:, -1])
    assert torch.allclose(lacks.mean(0), torch.zeros_like(constants), atol=1e-9)


@pytest.mark.parametrize("norm", [True, False])
def test_new_weights_give_the_product_that_was_solved_for(norm):
    """In evaluation exactly; in training too, where the batch has the statistics that batch norm remembers."""
    layer = nn.Conv2d(4, 5, 1, bias=True)
    unit = models.Unit(layer, norm=norm, activation=False).double()
    x, one = torch.randn(300, 4, 1, 1, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    if norm:
        nn.init.uniform_(unit.norm.weight, 0.5, 1.5)
        nn.init.uniform_(unit.norm.bias, -1, 1)
        unit.norm.momentum = None
        unit.train()(x)  # its statistics are now those of x, but for the correction of the variance
        unit.norm.running_var *= 299 / 300
    original = copy.deepcopy(unit.eval())
    scale = unit.norm.weight.detach() / (unit.norm.running_var + unit.norm.eps).sqrt() if norm else one
    weight, constant = torch.randn(5, 4, 1, dtype=torch.float64) * 7, torch.randn(5, dtype=torch.float64)
    before, product = (x[:, :, 0, 0] @ w.flatten(1).T for w in (layer.weight.detach(), weight))
    wanted = original(torch.zeros_like(x))[:, :, 0, 0] + scale * (product + constant)
    lengths = layer.weight.detach().flatten(1).norm(dim=1)
    with torch.no_grad():
        put(unit, original, torch.arange(5), weight, constant, scale, product, before)
        assert torch.allclose(unit(x)[:, :, 0, 0], wanted)
        assert torch.allclose(unit.train()(x)[:, :, 0, 0], wanted)
    assert not norm or torch.allclose(layer.weight.detach().flatten(1).norm(dim=1), lengths)


def test_what_no_sample_tells_stays_as_it_is():
    columns = torch.randn(20, 4, dtype=torch.float64)
    columns[:, 1] = 0
    change = nearest_change(columns, torch.randn(20, 2, dtype=torch.float64))
    assert (change[1] == 0).all()
    assert (change[[0, 2, 3]] != 0).all()
    columns[:, 3] = columns[:, 2]  # the smallest change shares it out
    change = nearest_change(columns, torch.randn(20, 2, dtype=torch.float64))
    assert torch.allclose(change[2], change[3])
    assert (nearest_change(torch.randn(3, 4, dtype=torch.float64), torch.ones(3, dtype=torch.float64)) == 0).all()


@pytest.mark.parametrize("layer", [
    nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Conv2d(3, 4, (3, 2), stride=2, padding=(0, 1), dilation=(3, 2), bias=False),
    nn.Conv2d(3, 4, 1, stride=(2, 1), bias=False),
])  # fmt: skip
def test_windows_are_what_the_convolution_multiplies(layer):
    layer, x = layer.double(), torch.randn(5, 3, 11, 9, dtype=torch.float64)
    whole = layer(x)
    places = torch.rand(4, whole[0, 0].numel()).argsort(1)[:, :7]
    read = windows(layer, x, places)
    assert torch.allclose(read.flatten(1) @ layer.weight.flatten(1).T, values_at(whole, places, 4))
    # what the channels add sums up to the product
    reader = Reader(layer.weight.detach().flatten(2), read, values_at(whole, places, 4).detach(), torch.randint(4, (28,)))
    terms, wanted = reader.terms()
    assert torch.allclose(terms.sum(1), wanted, atol=1e-12)


def test_a_linear_layer_has_one_place():
    layer, x = nn.Linear(6, 4, bias=False).double(), torch.randn(5, 6, dtype=torch.float64)
    read = windows(layer, x, torch.zeros(3, 1, dtype=torch.int64))
    assert torch.allclose(read[..., 0] @ layer.weight.T, layer(x)[:3])


def test_channels_that_maps_lack_are_zero():
    assert values_at(torch.ones(2, 3, 2, 2), torch.zeros(2, 1, dtype=torch.int64), 5).tolist() == [[1, 1, 1, 0, 0]] * 2


def repair_of(network, keep=None, method="least_squares(rows=600, images=20)", batch=60, size=8):
    """A repair of a toy network in float64, of which the criterion cuts half, and the images that it samples."""
    original = ungated(network)
    for unit in network.units.values():
        unit.gate = OutputGate(unit.filters)
    keep = keep or {name: torch.arange(unit.filters) % 2 == 0 for name, unit in network.units.items()}
    images = images_for(network, batch, size)

    def sample(count):
        yield from ((part, None) for part in images[:count].split(32))

    return Repair(network, original, keep, method, sample, image_size=size), images


def repaired(network, keep=None, **options):
    repair, images = repair_of(network, keep, **options)
    return repair, [repair.carry_out(layer) for layer in repair.layers], images


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("method", ["thinet", "lasso", "least_squares"])
def test_every_wiring_is_repaired(name, method):
    network = toy(name)
    whole = {unit: len(mask) for unit, mask in ((u, torch.ones(m.filters)) for u, m in network.units.items())}
    repair, records, images = repaired(network, method=f"{method}(rows=600, images=20)", size=11)
    assert not network.training
    for unit, mask in repair.keep.items():  # as many as the criterion keeps, of every layer
        assert int(network.get_submodule(unit).live.sum()) == int(mask.sum()) < whole[unit]
    for record in records:
        if method != "thinet":
            assert record["error"] <= record["error_cut"] + 1e-9
    if method == "least_squares":
        assert all(torch.equal(network.get_submodule(unit).live.bool(), mask) for unit, mask in repair.keep.items())
    with torch.no_grad():
        masked, smaller = (outputs_of(net(images[:3])) for net in (network, Removal(network).compact().eval()))
    assert all(torch.allclose(one, other, atol=1e-9) for one, other in zip(masked, smaller, strict=True))


def test_repairing_brings_the_outputs_nearer():
    outputs = {}
    for how in ("cut", "repaired"):
        network = toy("inverted")
        repair, images = repair_of(network, method="least_squares(rows=2000, images=60)")
        with torch.no_grad():
            whole = repair.original(images)
            for layer in repair.layers:
                if how == "repaired":
                    repair.carry_out(layer)
                for name in (*layer.chosen, *layer.fixed):
                    network.get_submodule(name).gate.set(repair.keep[name])
            outputs[how] = float((network(images) - whole).square().mean())
    assert outputs["repaired"] < 0.5 * outputs["cut"]


class Twins(models.Network):
    """Three layers, of which the second has a filter twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.middle, self.last = conv_unit(3, 5, 3), conv_unit(5, 6, 3, stride=2), conv_unit(6, 5, 3)
        self.classifier = models.Unit(nn.Linear(5, 4), norm=False, activation=False)
        for name, source, target in (
            ("stem", "input", "stem"), ("middle", "stem", "middle"), ("last", "middle", "last"), ("classifier", "last", "output")
        ):  # fmt: skip
            self.wire(name, source, target)
        initialise(self)
        self.middle.weight.data[4] = self.middle.weight[1]

    def forward(self, x):
        return self.classifier(self.last(self.middle(self.stem(x))).mean((2, 3)))


@pytest.mark.parametrize(("method", "read_alike"), [
    ("least_squares", False), ("lasso", True), ("thinet", True), ("thinet(search='forward')", True)
])  # fmt: skip
def test_a_filter_that_is_there_twice_goes_at_no_loss(method, read_alike):
    torch.manual_seed(0)
    network = Twins().double().eval()
    if read_alike:  # one factor for all filters can only make up for it where it is read in the same way
        network.last.weight.data[:, 4] = network.last.weight[:, 1]
    if method in ("thinet", "lasso"):  # which look for what is small, and then may take either
        network.last.weight.data[:, [1, 4]] *= 0.01
    keep = {name: torch.ones(unit.filters, dtype=torch.bool) for name, unit in network.units.items()}
    keep["middle"][4] = False
    options = "rows=800, images=100"
    method = f"{method[:-1]}, {options})" if "(" in method else f"{method}({options})"
    repair, records, images = repaired(network, keep, method=method, batch=100)
    live = network.middle.live.bool().tolist()
    assert live.count(False) == 1
    assert not (live[1] and live[4])
    with torch.no_grad():
        assert float((network(images) - repair.original(images)).abs().max()) < 1e-9
    assert records[1]["error"] < 1e-9
    assert records[1]["error_cut"] > 1e-3


def test_a_branch_makes_up_for_what_its_stream_lacks(two_blocks):
    """The stem is cut; what a2 adds then is the whole network's stream less what is left of the stem."""
    two_blocks.eval()
    keep = {name: torch.ones(unit.filters, dtype=torch.bool) for name, unit in two_blocks.units.items()}
    keep["stem"][0] = False
    repair, images = repair_of(two_blocks, keep, method="least_squares(rows=3000, images=60)")
    for layer in repair.layers[:2]:
        record = repair.carry_out(layer)
    assert record["readers"] == ["a2"]
    assert record["error"] < record["error_cut"]

    def missing(network):  # of the stream behind the first joint, in the channel that the stem does not write
        seen = []
        with torch.no_grad():
            for net in (network, repair.original):
                hook = net.a.register_forward_hook(lambda _, arguments, y: seen.append(arguments[0] + arguments[1]))
                net(images)
                hook.remove()
        return float((seen[0] - seen[1])[:, 0].square().mean())

    after = missing(two_blocks)
    two_blocks.a2.layer.weight.data.copy_(repair.original.a2.weight)
    assert after < 0.9 * missing(two_blocks)


def test_a_branch_that_writes_nothing_is_left_alone(two_blocks):
    keep = {name: torch.ones(unit.filters, dtype=torch.bool) for name, unit in two_blocks.units.items()}
    keep["a2"][:] = False
    before = two_blocks.a2.weight.clone()
    _, records, _ = repaired(two_blocks, keep)
    assert records[1]["error"] is None
    assert torch.equal(two_blocks.a2.weight, before)


def test_fewer_samples_than_weights_leave_a_reader_as_it_was(two_blocks):
    before = two_blocks.classifier.weight.clone()
    _, records, _ = repaired(two_blocks, batch=2)
    assert records[-1]["rows"] == 2
    assert records[-1]["error"] == records[-1]["error_cut"]
    assert torch.equal(two_blocks.classifier.weight, before)


def test_the_samples_are_the_same_every_time_and_others_with_another_seed():
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        network = TwoBlocks().double().eval()
        repair, _ = repair_of(network)
        repair.seed = seed
        state = torch.get_rng_state()
        for layer in repair.layers:
            repair.carry_out(layer)
        assert torch.equal(state, torch.get_rng_state())
        weights.append(network.b2.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_layers_follow_the_wiring(two_blocks):
    assert layers_of(two_blocks) == [
        Layer((), ("stem",), ("a1",)),
        Layer(("a1",), (), ("a2",)),
        Layer((), ("a2",), ("b1",)),
        Layer(("b1",), (), ("b2",)),
        Layer((), ("b2",), ("classifier",)),
    ]
    with torch.device("meta"):
        network = models.build("resnet20")
    # both readers of a stream at once; a projection is cut before the branch beside it is repaired
    layers = {layer.name: layer for layer in layers_of(network)}
    assert layers["stage1.2.conv2"].readers == ("stage2.0.conv1", "stage2.0.projection")
    assert layers["stage2.0.conv1"] == Layer(("stage2.0.conv1",), ("stage2.0.projection",), ("stage2.0.conv2",))
    # what is tied to a unit is chosen with it, and its readers are those of both
    assert layers_of(toy("depthwise"))[0] == Layer(("stem", "depth1"), (), ("point1",))


def test_every_unit_is_cut_once():
    for network in (*(toy(name) for name in TOYS), TwoBlocks()):
        cut = [name for layer in layers_of(network) for name in (*layer.chosen, *layer.fixed)]
        assert sorted(cut) == sorted(network.units)


def test_a_unit_that_nothing_reads_is_refused(two_blocks):
    two_blocks.extra = conv_unit(6, 4, 3)
    two_blocks.wire("extra", "stream", "extra")
    with pytest.raises(ValueError, match="'extra' is read by no layer whose weights could be solved for"):
        layers_of(two_blocks)


def test_too_few_rows_are_refused(two_blocks):
    check(two_blocks, "lasso(rows=54)")
    with pytest.raises(ValueError, match="rows=53 are too few to solve for the 54 weights of a filter of 'a1'"):
        check(two_blocks, "lasso(rows=53)")
    with pytest.raises(ValueError, match="at least 1"):
        check(two_blocks, "lasso(images=0)")
