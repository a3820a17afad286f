"""These tests check that the network after removal holds what the budget asked for."""

import pytest
import torch

import models
from pruning import Pruner, accounting
from pruning.budget import Budget, round_up
from settings.registry import NETWORKS


def left(network, what, image_size=32):
    return getattr(accounting.remaining(network, image_size), what) / getattr(accounting.dense(network, image_size), what)


WITHOUT_STREAMS = ("vgg16", "vgg19", "lenet5")
# it has no filters that --prune_type structured could cut; detectors are in tests/test_detector.py
WITHOUT = ("lenet300", "ssd300_vgg16", "ssd512_vgg16")
DEEPEST = ("resnet101", "resnet110", "resnet152", "resnext29")  # wired as the ones before them, and slow


@pytest.mark.parametrize(("name", "residual"), [
    (name, residual)
    for name in (*(name for name in NETWORKS.entries if name not in WITHOUT), "resnet20(shortcut='pad')")
    for residual in ("free", "grouped")
    if residual == "free" or name not in (*DEEPEST, *WITHOUT_STREAMS)
])  # fmt: skip
def test_budgets_are_met_on_every_network(name, residual):
    torch.manual_seed(0)
    network = models.build(name)
    for what, share in (("macs", 0.5), ("parameters", 0.3)):
        for unit in network.units.values():
            unit.gate = None
        Pruner(network, rate=1 - share, budget=what, residual=residual).update(1 - share)
        assert share - 0.01 <= left(network, what) <= share


def test_a_network_without_filters_is_refused():
    with pytest.raises(ValueError, match="nothing that --prune_type structured could cut"):
        Pruner(models.build("lenet300"), rate=0.5)


@pytest.mark.parametrize("scope", ["global", "local", "global(normalise='none')", "local(floor=2)"])
def test_budgets_go_with_every_scope(scope):
    torch.manual_seed(0)
    network = models.build("resnet20")
    Pruner(network, rate=0.6, budget="macs", scope=scope).update(0.6)
    assert 0.39 <= left(network, "macs") <= 0.4


@pytest.mark.parametrize("name", ["resnet20", "resnet56"])
@pytest.mark.parametrize("criterion", ["L1", "bn_scale", "random"])
def test_a_threshold_of_each_layer_is_corrected_by_single_filters(name, criterion):
    """One rate for all layers takes a filter of each at once, which is more than a percent of a small network."""
    torch.manual_seed(0)
    network = models.build(name)
    Pruner(network, rate=0.1, budget="parameters", scope="local", criterion=criterion).update(0.1)
    assert 0.895 <= left(network, "parameters") <= 0.9


def test_grouping_needs_streams():
    with pytest.raises(ValueError, match="no two layers that may be cut write one channel"):
        Pruner(models.build("vgg16"), rate=0.5, residual="grouped")


def test_decisions_are_counted():
    network = models.build("resnet20")
    assert len(Pruner(network, rate=0.5, residual="grouped").decisions) == 3 * (16 + 32 + 64) + 16 + 32 + 64
    for unit in network.units.values():
        unit.gate = None
    assert len(Pruner(network, rate=0.5).decisions) == 784


def test_rounded_layers_are_multiples_and_within_the_budget():
    torch.manual_seed(0)
    network = models.build("vgg16")
    Pruner(network, rate=0.7, budget="macs", round_to=8).update(0.7)
    assert all(int(unit.live.sum()) % 8 == 0 for unit in network.units.values())
    assert 0.28 <= left(network, "macs") <= 0.3


def test_a_rate_is_rounded_up():
    network = models.build("resnet20")
    Pruner(network, rate=0.6, round_to=8).update(0.6)
    assert {int(unit.live.sum()) % 8 for unit in network.units.values()} == {0}
    assert sum(int(unit.live.sum()) for unit in network.units.values()) >= 0.4 * 784


def test_round_up_keeps_the_next_best():
    scores = {"a": torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0]), "b": torch.tensor([1.0, 1.0, 1.0]), "c": torch.ones(2)}
    keep = {"a": torch.tensor([0, 0, 0, 1, 0]).bool(), "b": torch.tensor([0, 0, 1]).bool(), "c": torch.zeros(2).bool()}
    rounded = round_up(scores, keep, dict.fromkeys(scores, 2))
    assert rounded["a"].tolist() == [False, False, False, True, True]
    assert rounded["b"].tolist() == [False, True, True]  # among equals the lower index goes first
    assert rounded["c"].tolist() == [False, False]
    assert round_up(scores, keep, dict.fromkeys(scores, 4))["b"].all()


def test_a_budget_below_the_floor_is_refused():
    with pytest.raises(ValueError, match=r"0\.001 of the macs is less than the least that can be left, about 0\.0"):
        Pruner(models.build("resnet20"), rate=0.999, budget="macs")


def test_a_ramp_asks_for_less_at_first():
    torch.manual_seed(0)
    network = models.build("resnet20")
    pruner = Pruner(network, rate=0.8, budget="macs", schedule="cubic")
    pruner.begin(8, 1, None)
    shares = []
    for epoch in range(8):
        pruner.before_step(epoch, 0)
        shares.append(left(network, "macs"))
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.5
    assert 0.19 <= shares[-1] <= 0.2


@pytest.mark.parametrize("most", [27, 20, 0])
@pytest.mark.parametrize("left_over", [1.0, 0.8, 0.45, 0.1, 0.0])
def test_the_search_is_the_linear_scan(two_blocks, left_over, most, monkeypatch):
    """Filters go one after the other, at most so many: as few as meet the budget, or all that may go."""
    monkeypatch.setattr(Budget, "TRIES", 0)  # without taking single decisions back
    budget = Budget(two_blocks, "macs", 8)
    order = [(name, index) for name, unit in two_blocks.units.items() for index in range(unit.filters)]

    def choose(k):
        if k > most:
            raise ValueError
        keep = {name: torch.ones(unit.filters, dtype=torch.bool) for name, unit in two_blocks.units.items()}
        for name, index in order[:k]:
            keep[name][index] = False
        return keep

    found = budget.search(choose, lambda keep: keep, len(order), left_over)
    enough = [k for k in range(most + 1) if budget.fraction_left(choose(k)) <= left_over]
    wanted = choose(min(enough, default=most))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
