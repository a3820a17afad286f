"""These tests hold the thresholds of Han et al., 2015, q standard deviations of a layer's weights, against numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning import Pruner
from pruning.scopes import deviation
from settings.arguments import parse
from settings.errors import Refused

pytestmark = pytest.mark.core

UNSTRUCTURED = ["--prune_type", "unstructured", "--prune_scope"]


def choose(lists, rate=0.0, **options):
    """What the scope keeps of layers of these weights."""
    weights = {f"layer{i}": torch.tensor(values, dtype=torch.float64) for i, values in enumerate(lists)}
    scores = {name: weight.abs() for name, weight in weights.items()}
    return [keep.tolist() for keep in deviation(scores, rate, lambda: weights, **options).values()]


def by_numpy(lists, rate):
    """Sorted by |w| / np.std(layer), then by index; the last of each layer in that order is passed over."""
    ranked, kept_anyway = [], set()
    for layer, values in enumerate(lists):
        multiples = np.abs(values) / max(np.std(values), 1e-30)
        kept_anyway.add((layer, max(range(len(values)), key=lambda i, values=values: (abs(values[i]), i))))
        ranked += [(multiple, layer, i) for i, multiple in enumerate(multiples)]
    k = int(rate * len(ranked) + 1e-9)
    cut = {(layer, i) for _, layer, i in [one for one in sorted(ranked) if one[1:] not in kept_anyway][:k]}
    return [[(layer, i) not in cut for i in range(len(values))] for layer, values in enumerate(lists)], k


# powers of two times a layer's weights leave its multiples as they are, to the last digit
layers = st.lists(
    st.tuples(st.lists(st.integers(-4, 4), min_size=2, max_size=9).filter(lambda values: len({*values}) > 1), st.integers(-3, 3)),
    min_size=1,
    max_size=5,
).map(lambda pairs: [[value * 2.0**power for value in values] for values, power in pairs])


@settings(deadline=None, max_examples=200)
@given(layers, st.floats(0, 0.99))
def test_one_q_for_all_layers_cuts_exactly_the_rate(lists, rate):
    wanted, k = by_numpy(lists, rate)
    if k > sum(len(values) - 1 for values in lists):
        with pytest.raises(ValueError, match="largest rate"):
            choose(lists, rate)
        return
    keep = choose(lists, rate)
    assert sum(not kept for layer in keep for kept in layer) == k
    assert keep == wanted


@settings(deadline=None, max_examples=100)
@given(layers, st.floats(0.1, 3))
def test_a_q_cuts_what_is_below_it_in_each_layer(lists, q):
    keep = choose(lists, q=q)
    for kept, values in zip(keep, lists, strict=True):
        above = np.abs(values) >= q * torch.tensor(values, dtype=torch.float64).std(correction=0).item()
        above[max(range(len(values)), key=lambda i, values=values: (abs(values[i]), i))] = True
        assert kept == above.tolist()


def test_worked_values():
    """Of 1, -1, 3, -3 the mean is 0 and the deviation sqrt(5) = 2.236; of 2, 2, 4, 4 it is 1, about the mean 3."""
    lists = [[1.0, -1.0, 3.0, -3.0], [2.0, 2.0, 4.0, 4.0]]
    assert choose(lists, q=1.0) == [[False, False, True, True], [True] * 4]
    assert choose(lists, q=3.0) == [[False, False, False, True], [False, False, True, True]]
    assert choose(lists, q=100.0, floor=0) == [[False] * 4, [False] * 4]
    # multiples .447 .447 1.342 1.342 and 2 2 4 4: the first layer goes first, although it holds a 3
    assert choose(lists, 0.5) == [[False, False, False, True], [False, True, True, True]]
    assert choose(lists, 0.25) == [[False, False, True, True], [True] * 4]
    assert choose(lists, 0.125) == [[False, True, True, True], [True] * 4]
    # equal weights have no deviation: nothing is below it, and they go last
    assert choose([[0.5, 0.5], [1.0, -1.0, 3.0]], q=1.0) == [[True, True], [False, False, True]]
    assert choose([[0.5, 0.5], [1.0, -1.0, 3.0]], 0.4) == [[True, True], [False, False, True]]


def test_later_rounds_measure_what_is_left(two_blocks):
    """Two rounds at q=1 by numpy: the second deviation is that of the survivors, and what was cut stays cut."""
    pruner = Pruner(two_blocks, prune_type="unstructured", scope="deviation(q=1.0)", phase="iterative(rounds=2)", rate=0.0)
    alive = {name: np.ones(unit.weight.shape, bool) for name, unit in pruner.units.items()}
    for _ in range(2):
        pruner.update(0.0)
        for name, unit in pruner.units.items():
            weight = unit.weight.detach().numpy()
            alive[name] &= np.abs(weight) >= weight[alive[name]].std()
            assert np.array_equal(pruner.gates[name].mask.numpy() == 1, alive[name]), name
    assert all(mask.sum() > 1 for mask in alive.values())


def test_rounds_at_a_rate_cut_as_many_as_were_asked(two_blocks):
    pruner = Pruner(two_blocks, prune_type="unstructured", scope="deviation", phase="iterative", rate=0.9)
    total = sum(unit.weight.numel() for unit in pruner.units.values())
    for rate in (0.3, 0.6, 0.9):
        before = {name: gate.decide() for name, gate in pruner.gates.items()}
        pruner.update(rate)
        assert pruner.cut() == int(rate * total + 1e-9)
        assert not any((gate.decide() & ~before[name]).any() for name, gate in pruner.gates.items())


def test_a_q_says_how_much_and_a_rate_says_which_q():
    asked = parse([*UNSTRUCTURED, "deviation(q=0.7)", "--rounds", "3"])
    assert (asked.pruning.prune_rate, asked.pruning.prune_phase) == (0.0, "iterative(rounds=3)")
    assert parse([*UNSTRUCTURED, "deviation", "--prune_rate", "0.8"]).pruning.prune_rate == 0.8
    assert parse([*UNSTRUCTURED, "deviation(floor=3)"]).pruning.prune_rate == 0.6
    assert parse([*UNSTRUCTURED, "deviation", "--prune_imp", "L2"]).pruning.prune_imp == "L2"


@pytest.mark.parametrize(("flags", "words"), [
    ([*UNSTRUCTURED, "deviation(q=1.0)", "--prune_rate", "0.8"], "--prune_rate has no effect with --prune_scope deviation"),
    ([*UNSTRUCTURED, "deviation(q=-1.0)"], "at least 0"),
    ([*UNSTRUCTURED, "deviation", "--target_params", "0.1"], "no filter goes as a whole"),
    (["--prune_type", "kernels", "--prune_scope", "deviation"], "about single weights: it needs --prune_type unstructured"),
    (["--prune_type", "structured", "--prune_scope", "deviation"], "about single weights: it needs --prune_type unstructured"),
    ([*UNSTRUCTURED, "deviation", "--prune_imp", "OBD"], "it needs --prune_imp L1 or L2, not OBD"),
    (["--prune_scope", "deviation"], "has no effect without --prune_type"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(flags, words):
    with pytest.raises(Refused, match=words):
        parse(flags)
