"""These tests check that scopes cut exactly k, ties by index, down to a floor; and show the collapse without a floor."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from pruning import Pruner, accounting
from pruning.scopes import global_, local, preset, sensitivity

pytestmark = pytest.mark.core

layers = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=9), min_size=1, max_size=5)


def tensors(lists):
    return {f"layer{i}": torch.tensor(values, dtype=torch.float32) for i, values in enumerate(lists)}


def brute_force(lists, rate, floor, normalise):
    """Sorted by score then index; whoever is among the best `floor` of a layer is passed over."""
    ranked, protected = [], set()
    for layer, values in enumerate(lists):
        mean = torch.tensor(values, dtype=torch.float32).mean().clamp_min(1e-30)
        order = sorted(range(len(values)), key=lambda i, values=values: (values[i], i))
        protected |= {(layer, i) for i in order[max(len(order) - floor, 0) :]}
        scores = torch.tensor(values, dtype=torch.float32) / mean if normalise == "mean" else torch.tensor(values)
        ranked += [(float(scores[i]), layer, i) for i in range(len(values))]
    k = int(rate * len(ranked) + 1e-9)
    cut = [(layer, i) for _, layer, i in sorted(ranked) if (layer, i) not in protected][:k]
    return {f"layer{i}": [(i, j) not in cut for j in range(len(values))] for i, values in enumerate(lists)}, k


@settings(deadline=None, max_examples=200)
@given(layers, st.floats(0, 0.99), st.integers(0, 2), st.sampled_from(["mean", "none"]))
def test_global_is_the_brute_force(lists, rate, floor, normalise):
    wanted, k = brute_force(lists, rate, floor, normalise)
    room = sum(max(len(values) - floor, 0) for values in lists)
    if k > room:
        with pytest.raises(ValueError, match="largest rate"):
            global_(tensors(lists), rate, floor=floor, normalise=normalise)
        return
    keep = global_(tensors(lists), rate, floor=floor, normalise=normalise)
    assert {name: mask.tolist() for name, mask in keep.items()} == wanted
    assert sum(int((~mask).sum()) for mask in keep.values()) == k


@settings(deadline=None, max_examples=100)
@given(layers, st.floats(0, 0.99), st.integers(0, 2))
def test_local_cuts_each_layer_alike(lists, rate, floor):
    if any(int(rate * len(values) + 1e-9) > max(len(values) - floor, 0) for values in lists):
        with pytest.raises(ValueError, match="has a floor of"):
            local(tensors(lists), rate, floor=floor)
        return
    keep = local(tensors(lists), rate, floor=floor)
    for name, values in zip(keep, lists, strict=True):
        k = int(rate * len(values) + 1e-9)
        cut = sorted(range(len(values)), key=lambda i, values=values: (values[i], i))[:k]
        assert [i for i, kept in enumerate(keep[name].tolist()) if not kept] == sorted(cut)


@pytest.mark.parametrize(("n", "rate", "k"), [(10, 0.8, 8), (10, 0.9, 9), (100, 0.29, 29), (100, 0.57, 57), (3, 0.5, 1)])
def test_floats_do_not_shorten_the_count(n, rate, k):
    assert int((~global_({"a": torch.arange(n)}, rate, floor=0)["a"]).sum()) == k


def test_masks_keep_the_shape_of_the_scores():
    scores = {"a": torch.rand(3, 4, 2, 2), "b": torch.rand(5, 3)}
    for scope in (global_, local):
        assert {name: keep.shape for name, keep in scope(scores, 0.5).items()} == {"a": (3, 4, 2, 2), "b": (5, 3)}


def test_the_published_threshold_cuts_one_more_and_all_ties():
    keep = global_({"a": torch.tensor([1.0, 2, 3, 4, 5])}, 0.4, floor=0, normalise="none", threshold="published")
    assert keep["a"].tolist() == [False, False, False, True, True]
    keep = global_({"a": torch.tensor([1.0, 3, 3, 3, 5])}, 0.4, floor=0, normalise="none", threshold="published")
    assert keep["a"].tolist() == [False, False, False, False, True]


def empty_layers(arch, criterion, scope, rate):
    torch.manual_seed(0)
    network = models.build(arch)
    Pruner(network, criterion=criterion, scope=scope, rate=rate).update(rate)
    return [name for name, kept in accounting.kept_filters(network).items() if not kept]


RAW = "global(normalise='none', floor=0)"


def test_collapse_at_initialisation_resnet56_mean():
    """Section 2 of the method: all 18 convolutions of stage 3, and nothing else."""
    wanted = [f"stage3.{block}.conv{conv}" for block in range(9) for conv in (1, 2)]
    assert empty_layers("resnet56", "L1(reduce='mean')", RAW, 0.6) == wanted


def test_collapse_at_initialisation_resnet56_sum():
    """The stem and all of stages 1 and 2; with them what enters stage 3."""
    empty = set(empty_layers("resnet56", "L1", RAW, 0.6))
    units = [name for name in models.build("resnet56").units if name.startswith(("stem", "stage1", "stage2"))]
    assert empty - {"stage3.0.conv1", "stage3.0.projection"} == set(units)


def test_collapse_at_initialisation_resnet50_sum():
    """The stem and every third convolution of stages 1 to 3; in stage 1 also what reads the stem."""
    empty = set(empty_layers("resnet50", "L1", RAW, 0.6))
    third = {f"stage{stage}.{block}.branch.conv3" for stage, blocks in ((1, 3), (2, 4), (3, 6)) for block in range(blocks)}
    assert empty == third | {"stem", "stage1.0.branch.conv1", "stage1.0.projection"}


@pytest.mark.parametrize("arch", ["resnet20", "resnet56", "resnet18", "vgg16"])
@pytest.mark.parametrize("scope", ["global", "local", "global(normalise='none')"])
@pytest.mark.parametrize("rate", [0.6, 0.8, 0.95])
def test_no_layer_is_empty_with_the_floor(arch, scope, rate):
    assert empty_layers(arch, "L1", scope, rate) == []


def test_a_rate_that_the_floor_does_not_allow_is_refused():
    with pytest.raises(ValueError, match=r"floor of 1 a layer only 763 may go: the largest rate is 0\.9732"):
        Pruner(models.build("resnet20"), rate=0.99)


def test_a_preset_keeps_the_best_of_the_layers_it_names(tmp_path):
    scores = tensors([[3, 1, 2], [1, 1, 0]])
    file = tmp_path / "counts.json"
    for kept, wanted in (({"layer0": 1}, [1, 3]), ({"layer0": 2, "layer1": 1}, [2, 1])):
        file.write_text(json.dumps({"kept": kept}))
        keep = preset(scores, 0.9, name=str(file))
        assert [int(mask.sum()) for mask in keep.values()] == wanted
    assert keep["layer0"].tolist() == [True, False, True]
    assert keep["layer1"].tolist() == [False, True, False]
    for kept, message in (({"layer2": 1}, "names a layer 'layer2'"), ({"layer0": 4}, "keeps 4 filters of layer0, which has 3")):
        file.write_text(json.dumps({"kept": kept}))
        with pytest.raises(ValueError, match=message):
            preset(scores, 0.9, name=str(file))
    for content in ("[]", "{}", '{"kept": 3}', '{"kept": [1]}', '{"kept": {"layer0": true}}', "no json"):
        file.write_text(content)
        with pytest.raises(ValueError, match=r"has no 'kept'|is no preset|no preset: it is no JSON"):
            preset(scores, 0.9, name=str(file))
    with pytest.raises(ValueError, match="choose from ResNet-56-A"):
        preset(scores, 0.9, name="ResNet-57-A")
    with pytest.raises(ValueError, match="no scan at 'ResNet-56-A'"):
        sensitivity(scores, 0.9, file="ResNet-56-A")


def test_a_scan_cuts_where_it_costs_least(tmp_path):
    """Layer 0 loses 1 point at a half and 20 at three quarters, layer 1 loses 10 at a half: four of eight come from both."""
    file = tmp_path / "scan.json"
    file.write_text(json.dumps({"rates": [0.5, 0.75], "layers": {"layer0": [1, 20], "layer1": [10, 11]}}))
    scores = tensors([[4, 3, 2, 1], [1, 2, 3, 4]])
    cut = {}
    for k in (1, 2, 3, 4, 5, 6):
        keep = sensitivity(scores, k / 8, file=str(file))
        cut[k] = [int((~mask).sum()) for mask in keep.values()]
    # what they cost: .5, 1, 20 and 5, 10, 11; the last ones stay
    assert list(cut.values()) == [[1, 0], [2, 0], [2, 1], [2, 2], [2, 3], [3, 3]]
    assert keep["layer0"].tolist() == [True, False, False, False]
    assert keep["layer1"].tolist() == [False, False, False, True]
    # on a plateau, by the order of scores
    file.write_text(json.dumps({"rates": [0.1, 0.5, 0.9], "layers": {"layer0": [0, 5, 5]}}))
    plateau = sensitivity(tensors([list(range(20, 0, -1))]), 0.55, file=str(file))["layer0"]
    assert plateau.tolist() == [True] * 9 + [False] * 11
    file.write_text(json.dumps({"rates": [0.5, 0.75], "layers": {"layer0": [1, 20], "layer1": [10, 11]}}))
    with pytest.raises(ValueError, match="is of another network: layer1"):
        sensitivity({"layer0": scores["layer0"]}, 0.5, file=str(file))


def test_network_slimming_cuts_what_its_code_did():
    """Scales .1 to .4, strictly above sorted[int(T p)] stays: two at a quarter, one at a half, and one where it would be none."""
    scales = {"layer": torch.tensor([0.1, 0.2, 0.3, 0.4])}
    published = {"normalise": "none", "threshold": "published"}
    kept = [int(global_(scales, rate, **published)["layer"].sum()) for rate in (0.25, 0.5, 0.75)]
    assert kept == [2, 1, 1]
    assert not global_(scales, 0.75, floor=0, **published)["layer"].any()
    two = {"first": torch.tensor([0.9, 0.05]), "second": torch.tensor([0.5, 0.4])}
    keep = global_(two, 0.5, normalise="none", floor=0)
    assert [mask.tolist() for mask in keep.values()] == [[True, False], [True, False]]


def test_scores_of_any_sign_and_close_ones_are_told_apart():
    close = {"layer": torch.tensor([1 + 3e-12, 1 + 1e-12, 1 + 2e-12], dtype=torch.float64)}
    assert global_(close, 0.4)["layer"].tolist() == local(close, 0.4)["layer"].tolist() == [True, False, True]
    mixed = {"a": torch.tensor([-3.0, 1.0, 1.0]), "b": torch.tensor([0.5, 1.5, 2.5])}
    keep = global_(mixed, 0.34)
    assert [mask.tolist() for mask in keep.values()] == [[False, True, True], [False, True, True]]
