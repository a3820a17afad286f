"""These tests hold the penalties against torch.corrcoef, brute force and finite differences."""

import itertools
from functools import partial

import pytest
import torch

import models
import regularizers
from models import numerics
from pruning import OutputGate, Pruner, WeightMask
from pruning.gates.scale import put_scales
from regularizers import bn_l1_proximal
from settings.meaning import task_of
from settings.registry import NETWORKS, REGULARIZERS

# the measures alone
reg_cov, reg_cov_ijcai2018, reg_ortho, l1, bn_l1 = (
    partial(getattr(regularizers, name), weight=1) for name in ("reg_cov", "reg_cov_ijcai2018", "reg_ortho", "l1", "bn_l1")
)
PENALTIES = [name for name, entry in REGULARIZERS.entries.items() if entry.kind != "proximal"]
STEPS = [name for name, entry in REGULARIZERS.entries.items() if entry.kind == "proximal"]


def mean_correlation(weights, live=None):
    """The definition, a layer at a time, by torch.corrcoef over live filters."""
    values = []
    for name, weight in weights.items():
        rows = weight.flatten(1)
        rows = rows if live is None else rows[live[name].bool()]
        n = len(rows)
        c = torch.corrcoef(rows).abs() if n > 1 else torch.ones(1, 1)
        values.append((c.sum() - n) / (n * (n - 1)) if n > 1 else torch.zeros(()))
    return torch.stack([value.double() for value in values]).mean()


def ijcai(weights, tau):
    total = 0.0
    for weight in weights.values():
        rows = weight.flatten(1)
        rows = rows[rows.abs().mean(1) > tau]
        c = torch.corrcoef(rows)
        total += ((c - torch.diag(c.diag())).norm() / len(rows)).item()
    return total


def weights_of(network):
    return {name: unit.weight.detach() for name, unit in network.units.items()}


@pytest.mark.core
def test_reg_cov_is_torch_corrcoef(two_blocks):
    torch.testing.assert_close(reg_cov(two_blocks), mean_correlation(weights_of(two_blocks)), rtol=0, atol=1e-12)


@pytest.mark.core
def test_reg_cov_leaves_masked_filters_out(two_blocks):
    live = {name: (torch.arange(unit.filters) % 3 != 0).float() for name, unit in two_blocks.units.items()}
    live["b1"] = torch.tensor([0.0, 0, 1, 0, 0])  # one live filter gives 0
    for kind in (OutputGate, WeightMask):
        for name, unit in two_blocks.units.items():
            unit.gate = kind(unit.filters) if kind is OutputGate else kind((unit.filters,))
            unit.gate.set(live[name])
        torch.testing.assert_close(reg_cov(two_blocks), mean_correlation(weights_of(two_blocks), live), rtol=0, atol=1e-12)
        gradients = torch.autograd.grad(reg_cov(two_blocks), [unit.weight for unit in two_blocks.units.values()])
        for (name, mask), gradient in zip(live.items(), gradients, strict=True):
            moved = gradient.flatten(1).abs().sum(1) > 0
            assert torch.equal(moved, mask.bool() & (mask.sum() > 1)), name


@pytest.mark.core
def test_reg_cov_sees_single_weights_that_are_masked(two_blocks):
    for unit in two_blocks.units.values():
        unit.gate = WeightMask(unit.weight.shape)
        unit.gate.set(torch.rand(unit.weight.shape, generator=torch.Generator().manual_seed(2)) > 0.5)
    masked = {name: unit.weight.detach() * unit.gate.mask for name, unit in two_blocks.units.items()}
    torch.testing.assert_close(reg_cov(two_blocks), mean_correlation(masked), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in PENALTIES if name != "bn_l1"])
def test_gradients_by_finite_differences(two_blocks, name):
    penalty = REGULARIZERS.get(name, weight=1.0)
    weight = two_blocks.a1.layer.weight
    gradient = torch.autograd.grad(penalty(two_blocks), weight)[0]
    for index in itertools.islice(itertools.product(range(5), range(0, 6, 2), (0, 2), (1,)), 0, None, 5):
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                weight[index] += step
                values.append(penalty(two_blocks).item())
                weight[index] -= step
        assert gradient[index].item() == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-6, rel=1e-4)


@pytest.mark.parametrize(
    "name", [name for name, entry in NETWORKS.entries.items() if name != "lenet300" and task_of(entry) == "classification"]
)  # it has no filters
def test_strictly_positive_with_a_gradient_on_every_network(name):
    """The published regulariser was the constant 0."""
    torch.manual_seed(0)
    network = models.build(name)
    value = reg_cov(network)
    value.backward()
    assert 0.005 < value.item() < 0.5
    # the filters of a depthwise layer read other channels, and are not compared
    compared = [unit for unit in network.units.values() if not unit.in_groups or unit.filters > unit.groups]
    assert all(unit.weight.grad.abs().sum() > 0 for unit in compared)


def test_the_ijcai_form(two_blocks):
    for tau in (1e-4, 0.14):
        assert reg_cov_ijcai2018(two_blocks, tau=tau).item() == pytest.approx(ijcai(weights_of(two_blocks), tau), abs=1e-12)
    # tau has an effect
    assert reg_cov_ijcai2018(two_blocks, tau=0.14) != reg_cov_ijcai2018(two_blocks)


def test_the_ijcai_form_on_resnet56_at_initialisation():
    """Random rows of k weights correlate with variance 1 / (k - 1): sum over layers of sqrt((n - 1) / n / (k - 1)) = 3.91."""
    torch.manual_seed(0)
    network = models.build("resnet56")
    shapes = [unit.weight.flatten(1).shape for unit in network.units.values()]
    wanted = sum(((n - 1) / n / (k - 1)) ** 0.5 for n, k in shapes)
    assert wanted == pytest.approx(3.91, abs=0.01)
    assert reg_cov_ijcai2018(network).item() == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("penalty", [reg_cov, reg_cov_ijcai2018])
def test_dead_and_constant_filters_are_finite(two_blocks, dtype, penalty):
    network = two_blocks.to(dtype)
    with torch.no_grad():
        network.a1.layer.weight[0] = 0
        network.a1.layer.weight[1] = 0.1
        network.a1.layer.weight[2] = -0.7
        network.b1.layer.weight.zero_()
        network.b2.layer.weight.fill_(0.3)
    value = penalty(network)
    value.backward()
    assert torch.isfinite(value)
    for unit in network.units.values():
        assert torch.isfinite(unit.weight.grad).all()
    assert network.b1.layer.weight.grad.abs().max() == 0
    # constant filters correlate with nothing, not even with each other
    for unit in (network.stem, network.a2):
        with torch.no_grad():
            unit.layer.weight.fill_(0.3)
    with torch.no_grad():
        network.a1.layer.weight.fill_(0.1)
    assert penalty(network).item() == 0


def test_copies_are_1_and_orthogonal_rows_0(two_blocks):
    for unit in two_blocks.units.values():
        with torch.no_grad():
            unit.layer.weight.copy_(unit.layer.weight[:1].expand_as(unit.weight).clone())
    assert reg_cov(two_blocks).item() == pytest.approx(1)


def test_it_does_not_change_with_the_size_of_weights(two_blocks):
    """A penalty that shrinking the weights would lower is not a decorrelation."""
    before = reg_cov(two_blocks).item()
    with torch.no_grad():
        for unit in two_blocks.units.values():
            unit.layer.weight.mul_(1e-3)
    assert reg_cov(two_blocks).item() == pytest.approx(before, rel=1e-9)


def test_descent_decorrelates(two_blocks):
    optimizer = torch.optim.SGD(two_blocks.parameters(), 0.5)
    before = reg_cov(two_blocks).item()
    for _ in range(50):
        optimizer.zero_grad()
        reg_cov(two_blocks).backward()
        optimizer.step()
    assert reg_cov(two_blocks).item() < 0.5 * before


def test_reg_ortho_is_the_spectral_norm(two_blocks):
    wanted = 0.0
    for unit in two_blocks.units.values():
        rows = unit.weight.detach().flatten(1)
        gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
        wanted += torch.linalg.matrix_norm(gram - torch.eye(len(gram), dtype=rows.dtype), 2).item() ** 2
    assert reg_ortho(two_blocks, iterations=500).item() == pytest.approx(wanted, rel=1e-6)
    few, more = (reg_ortho(two_blocks, iterations=n).item() for n in (1, 2))
    assert few < more <= wanted + 1e-9  # iterations has an effect


def test_reg_ortho_is_the_authors_formula(two_blocks):
    """A layer at a time, through autograd: v1 = A b, v2 = v1 / |v1|, |A v2|^2, for every parameter that is no vector."""

    def of(weight):
        rows = weight.flatten(1)
        tall = rows.shape[0] > rows.shape[1]
        gram = rows.T @ rows if tall else rows @ rows.T
        a = gram - torch.eye(len(gram), dtype=rows.dtype)
        start = torch.arange(1, len(gram) + 1, dtype=rows.dtype).cos()
        first = a @ start
        return (a @ (first / first.norm())).norm() ** 2

    weights = {name: unit.weight for name, unit in two_blocks.all_units.items()}
    for linear in (False, True):
        chosen = [weight for name, weight in weights.items() if linear or name != "classifier"]
        wanted = sum(of(weight) for weight in chosen)
        value = reg_ortho(two_blocks, linear=linear)
        torch.testing.assert_close(value, wanted, rtol=1e-12, atol=0)
        pairs = zip(torch.autograd.grad(value, chosen), torch.autograd.grad(wanted, chosen), strict=True)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_are_float32_under_autocast_and_touch_no_random_state(name):
    network = models.build("resnet20")
    state = torch.get_rng_state()
    outside = REGULARIZERS.get(name)(network)
    with torch.autocast("cpu", torch.bfloat16):
        inside = REGULARIZERS.get(name)(network)
    assert outside.dtype == inside.dtype == torch.float32
    assert torch.equal(outside, inside)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.core
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_in_closed_form_is_autograds(two_blocks, memory_format):
    """Masked, constant and single filters too; float64 against the plain formula, float32 against float64."""

    def plain(network):
        terms = []
        for unit in network.units.values():
            rows = unit.weight.flatten(1) - unit.weight.flatten(1).mean(1, keepdim=True)
            keep = [f for f in range(len(rows)) if unit.gate.mask[f] and rows[f].abs().max() > 1e-9]
            rows, live = torch.nn.functional.normalize(rows[keep]), unit.gate.mask.sum()
            apart = 1 - torch.eye(len(keep))
            terms.append(((rows @ rows.T).abs() * apart).sum() / (live * (live - 1)).clamp_min(1))
        return torch.stack(terms).sum() / len(network.units)

    network = two_blocks.to(memory_format=memory_format)
    for number, (name, unit) in enumerate(network.units.items()):
        unit.gate = OutputGate(unit.filters)
        unit.gate.set((torch.arange(unit.filters) > number - 1) if name != "b2" else torch.eye(unit.filters)[0])
    network.a1.layer.weight.data[4] = 3.0
    weights = [unit.weight for unit in network.units.values()]
    value, wanted = plain(network), torch.autograd.grad(plain(network), weights)
    got = torch.autograd.grad(3 * reg_cov(network), weights)
    torch.testing.assert_close(reg_cov(network), value, rtol=0, atol=1e-14)
    for one, other, weight in zip(got, wanted, weights, strict=True):
        torch.testing.assert_close(one, 3 * other, rtol=0, atol=1e-13)
        assert one.stride() == weight.stride()  # no copy into the optimizer's layout
    single = network.float()
    torch.testing.assert_close(reg_cov(single).double(), value, rtol=0, atol=1e-6)
    for one, other in zip(torch.autograd.grad(reg_cov(single), list(single.parameters())[0:1]), wanted[:1], strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-6)


def test_sums_of_sizes_over_live_filters(two_blocks):
    """And the gradient of network slimming: the sign, 0 at 0."""
    Pruner(two_blocks, rate=0.2)
    two_blocks.a1.gate.set(torch.tensor([1, 0, 1, 1, 1]))
    two_blocks.a1.norm.weight.data = torch.tensor([0.5, 3, -0.2, 0, 0.1], dtype=torch.float64)
    live = {name: unit.live.double() for name, unit in two_blocks.units.items()}
    weights = sum((unit.weight.abs().sum((1, 2, 3)) * live[name]).sum() for name, unit in two_blocks.units.items())
    scales = sum((unit.norm.weight.abs() * live[name]).sum() for name, unit in two_blocks.units.items())
    torch.testing.assert_close(l1(two_blocks), weights)
    torch.testing.assert_close(bn_l1(two_blocks), scales)
    gradient = torch.autograd.grad(bn_l1(two_blocks), two_blocks.a1.norm.weight)[0]
    assert gradient.tolist() == [1, 0, -1, 0, 1]


@pytest.mark.parametrize("format_", [torch.contiguous_format, torch.channels_last])
def test_live_filters_alone_give_the_same(two_blocks, monkeypatch, format_):
    """The way for large layers: the same value and gradient, 0 for what is cut."""
    two_blocks.to(memory_format=format_)
    Pruner(two_blocks, rate=0.5).update(0.5)
    weights = [unit.weight for unit in two_blocks.units.values()]
    found = []
    for large in (10**8, 0):
        monkeypatch.setattr(numerics, "LARGE", large)
        value = reg_cov(two_blocks)
        found.append((value, torch.autograd.grad(value, weights)))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-14)
    cut = two_blocks.a1.gate.mask == 0
    assert cut.any()
    assert (found[1][1][1][cut] == 0).all()


@pytest.mark.core
@pytest.mark.parametrize("name", PENALTIES)
def test_the_weight_is_a_factor(two_blocks, name):
    """Bit for bit, in float32 as in training: the product with what the penalty measures."""
    network = two_blocks.float()
    measure = REGULARIZERS.get(name, weight=1.0)(network)
    assert torch.equal(REGULARIZERS.get(f"{name}(weight=0.3)")(network), 0.3 * measure)
    assert torch.equal(REGULARIZERS.get(name, weight=0.3)(network), 0.3 * measure)
    default = REGULARIZERS.entries[name].options["weight"].default
    assert torch.equal(REGULARIZERS.get(name)(network), default * measure)


@pytest.mark.parametrize("name", STEPS)
def test_a_proximal_step_returns_nothing_and_touches_no_random_state(two_blocks, name):
    if "learned scales" in REGULARIZERS.entries[name].traits:
        put_scales(two_blocks, "block")
        for branch in two_blocks.branches.values():
            branch[-1].gate.scale.grad = torch.ones_like(branch[-1].gate.scale)
    before, state = [p.detach().clone() for p in two_blocks.parameters()], torch.get_rng_state()
    assert REGULARIZERS.get(name)(two_blocks, 0.1) is None
    assert torch.equal(state, torch.get_rng_state())
    first = [p.detach().clone() for p in two_blocks.parameters()]
    assert any(not torch.equal(one, other) for one, other in zip(before, first, strict=True))
    with torch.no_grad():
        for p, value in zip(two_blocks.parameters(), before, strict=True):
            p.copy_(value)
    REGULARIZERS.get(name, weight=0.5)(two_blocks, 0.1)  # its weight has an effect
    assert any(not torch.equal(p, other) for p, other in zip(two_blocks.parameters(), first, strict=True))


def test_soft_thresholding_by_hand(two_blocks):
    """Step 0.5 and weight 0.4: every live scale moves by 0.2 towards 0 and stops there; nothing else moves."""
    Pruner(two_blocks, rate=0.2)
    two_blocks.a1.gate.set(torch.tensor([1, 1, 1, 1, 0]))
    two_blocks.a1.norm.weight.data = torch.tensor([0.5, -1.25, 0.2, -0.125, 0.75], dtype=torch.float64)
    before = {name: p.detach().clone() for name, p in two_blocks.named_parameters()}
    bn_l1_proximal(two_blocks, 0.5, weight=0.4)
    # the last filter is cut: left as it is, as the penalties leave it
    assert two_blocks.a1.norm.weight.tolist() == pytest.approx([0.3, -1.05, 0, 0, 0.75], rel=1e-15)
    assert two_blocks.a1.norm.weight[2:4].abs().max() == 0
    for name, p in two_blocks.named_parameters():
        assert name.endswith("norm.weight") or torch.equal(p, before[name]), name
    assert all(p.requires_grad and p.grad is None for p in two_blocks.parameters())


def test_a_proximal_step_is_the_minimum_that_defines_it(two_blocks):
    """prox(x) = argmin_z (z - x)^2 / 2 + step * weight * |z|, against a fine grid."""
    scale = two_blocks.stem.norm.weight
    scale.data = torch.tensor([0.9, -0.7, 0.31, 0.29, -0.05, 0.0], dtype=torch.float64)
    grid = torch.linspace(-1, 1, 200_001, dtype=torch.float64)
    costs = (grid - scale.detach().unsqueeze(1)).square() / 2 + 0.1 * 3 * grid.abs()
    bn_l1_proximal(two_blocks, 0.1, weight=3.0)
    torch.testing.assert_close(scale.detach(), grid[costs.argmin(1)], rtol=0, atol=1.1e-5)


def test_proximal_descent_reaches_0_where_the_penalty_does_not(two_blocks):
    """(gamma - t)^2 / 2 + weight |gamma| is least at the soft-thresholded t: ISTA converges to it, and is 0 where t is small."""
    target = torch.tensor([0.5, 0.05, -0.05, -0.5, 0.0, 0.2], dtype=torch.float64)
    ends = []
    for proximal in (True, False):
        scale = two_blocks.stem.norm.weight
        scale.data = torch.full_like(target, 0.3)
        optimizer = torch.optim.SGD([scale], 0.1)
        for _ in range(300):
            optimizer.zero_grad()
            loss = (scale - target).square().sum() / 2
            (loss if proximal else loss + 0.1 * scale.abs().sum()).backward()
            optimizer.step()
            if proximal:
                bn_l1_proximal(two_blocks, 0.1, weight=0.1)
        ends.append(scale.detach().clone())
    assert ends[0].tolist() == pytest.approx([0.4, 0, 0, -0.4, 0, 0.1], abs=1e-9)
    assert (ends[0] == 0).tolist() == [False, True, True, False, True, False]
    assert (ends[1] == 0).sum() < 3
