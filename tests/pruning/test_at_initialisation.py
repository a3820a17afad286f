"""Networks are cut before they are trained: by SNIP, GraSP and SynFlow, in rounds, by smart ratios, until layers collapse."""

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_DATA, TwoBlocks, narrow, run_program
from promises import STEPS, differences, records, trains_and_resumes, unchanged
from torch import nn

import models
from models import Network, Unit
from pruning import Pruner
from pruning.collapse import collapse
from pruning.context import Context, lift
from pruning.derivatives import hessian_gradients, synaptic_flow
from pruning.granularities import Structured, Unstructured
from pruning.schedules import exponential, linear
from pruning.scopes import smart_ratio
from settings.arguments import parse
from settings.errors import Failed, Refused
from settings.registry import CRITERIA
from tasks.classification import Classification

pytestmark = pytest.mark.core

RAW = "global(normalise='none', floor=0)"


class Linears(Network):
    """Linear layers without bias, batch norm and ReLU: weights as given, from the first layer on."""

    def __init__(self, *weights):
        super().__init__()
        source = "input"
        for number, weight in enumerate(weights):
            weight = torch.tensor(weight, dtype=torch.float64)
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            layer.weight = nn.Parameter(weight)
            self.add_module(f"layer{number}", Unit(layer, norm=False, activation=False))
            target = "output" if number == len(weights) - 1 else f"layer{number}"
            self.wire(f"layer{number}", source, target)
            source = target

    def forward(self, x):
        for link in self.links:
            x = self.get_submodule(link.unit)(x)
        return x


class Squares:
    """A task whose loss is half the square of the output, with classes as any."""

    of_each_class = staticmethod(Classification.of_each_class)

    @staticmethod
    def image_losses(outputs, _):
        return outputs.square().sum(1) / 2


def scores(criterion, network, context):
    return lift(CRITERIA.get(criterion))(network.all_units, context)


def one_image(network, *image):
    batch = (torch.tensor([image], dtype=torch.float64), torch.zeros(1, dtype=torch.int64))
    return Context(network, Unstructured.groups, lambda: iter([batch]), 0, task=Squares)


def sampled(batch, parts=1):
    return lambda: zip(batch[0].tensor_split(parts), batch[1].tensor_split(parts), strict=True)


def test_snip_and_grasp_of_half_a_square():
    """L = (w x)^2 / 2, w = [1, 2, -1], x = [1, 1, 2]: g = [1, 1, 2], H g = [6, 6, 12]; GraSP removes index 2 first."""
    network = Linears([[1, 2, -1]])
    context = one_image(network, 1, 1, 2)
    for criterion in ("SNIP", "SNIP(per_class=0)", "syn"):
        assert scores(criterion, network, context)["layer0"].tolist() == [[1, 2, 2]]
    assert context.hessian_product(network.layer0, 0, 1.0).tolist() == [[6, 6, 12]]
    grasp = scores("GraSP(temperature=1.0)", network, context)["layer0"]
    assert grasp.tolist() == [[6, 12, -12]]  # the authors' score is -w * H g, of which the highest go
    assert int(grasp.argmin()) == 2


def test_grasp_removes_what_lowers_the_gradient_least(two_blocks, batch):
    """2 w (H g) is by how much the squared norm of the gradient falls if the weight shrinks: by a difference of two."""
    context = Context(two_blocks, Unstructured.groups, sampled(batch), 0)
    keep = scores("GraSP(per_class=0, temperature=3.0)", two_blocks, context)
    weights = [unit.weight for unit in two_blocks.all_units.values()]

    def norm():
        loss = F.cross_entropy(two_blocks.train()(batch[0]) / 3, batch[1])
        return float(sum(gradient.square().sum() for gradient in torch.autograd.grad(loss, weights)))

    with torch.no_grad():
        for name, index in (("stem", (0, 1, 2, 0)), ("a2", (3, 2, 1, 1)), ("b1", (4, 0, 0, 2)), ("classifier", (1, 3))):
            weight = two_blocks.get_submodule(name).weight
            value, step = weight[index].item(), 1e-5
            norms = []
            for factor in (1 + step, 1 - step):
                weight[index] = value * factor
                with torch.enable_grad():
                    norms.append(norm())
            weight[index] = value
            slope = (norms[0] - norms[1]) / (2 * step)
            assert float(keep[name][index]) == pytest.approx(slope / 2, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("moving", [True, False])
def test_hessian_products_do_not_depend_on_the_parts_in_evaluation(two_blocks, batch, moving):
    pruner = Pruner(two_blocks, prune_type="structured", rate=0.5)
    pruner.update(0.5)
    pruner.let_move(moving)
    weights = [unit.weight for unit in two_blocks.eval().all_units.values()]
    whole, parts = (hessian_gradients(two_blocks, weights, sampled(batch, n)(), Classification.image_losses, 2.0) for n in (1, 3))
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)
    if not moving:
        cut = pruner.gates["a1"].mask == 0
        assert cut.any()
        assert not whole[1][cut].any()


def test_as_many_images_of_each_class_are_read():
    labels = torch.tensor([0, 0, 0, 1, 0, 2, 0, 1, 1, 1, 2, 2])
    images, read = torch.arange(12.0), []

    def batches():
        for part in range(4):
            read.append(part)
            yield images[3 * part : 3 * part + 3], labels[3 * part : 3 * part + 3]

    def chosen(number):
        read.clear()
        return Classification.of_each_class(batches(), number, 3)

    assert torch.cat([part for part, _ in chosen(1)]).tolist() == [0, 3, 5]
    assert read == [0, 1]
    two = chosen(2)
    assert torch.cat([part for part, _ in two]).tolist() == [0, 1, 3, 5, 7, 10]
    assert [len(part) for part, _ in two] == [3, 3]
    assert torch.cat([targets for _, targets in two]).tolist() == [0, 0, 1, 2, 1, 2]
    assert torch.cat([part for part, _ in chosen(9)]).tolist() == list(range(12))


def test_snip_is_syn_on_these_images(two_blocks, batch):
    context = Context(two_blocks, Unstructured.groups, sampled(batch, 2), 0)
    images, labels = (torch.cat(parts) for parts in zip(*Classification.of_each_class(sampled(batch, 2)(), 1, 4), strict=True))
    own = Context(two_blocks, Unstructured.groups, lambda: iter([(images, labels)]), 0)
    assert differences(scores("SNIP(per_class=1)", two_blocks, context), scores("syn", two_blocks, own)) == []
    assert differences(scores("SNIP(per_class=0)", two_blocks, context), scores("syn", two_blocks, context)) == []


def test_synaptic_flow_of_a_linear_network():
    network = Linears([[1, -2], [3, 4]], [[-1, 2]])
    total, flow = synaptic_flow(network, (2,))
    assert float(total) == 17
    assert flow["layer0"].tolist() == [[1, 2], [6, 8]]
    assert flow["layer1"].tolist() == [[3, 14]]
    assert flow["layer0"].sum(1).tolist() == flow["layer1"][0].tolist()  # into a unit as much as out of it
    assert network.layer0.weight.tolist() == [[1, -2], [3, 4]]


@pytest.mark.parametrize("arch", ["vgg16", "lenet5"])
def test_each_layer_has_the_whole_flow(arch):
    network = narrow(models.build(arch), 8) if arch == "vgg16" else models.build(arch)
    with unchanged(network):
        total, flow = synaptic_flow(network, (3, 32, 32))
    assert total.dtype == torch.float64
    for score in flow.values():
        assert float(score.sum() / total) == pytest.approx(1, abs=1e-10)


def test_batch_statistics_would_destroy_it_and_batch_norm_can_be_left_out():
    network = narrow(models.build("vgg16"), 16)
    unit = next(iter(network.all_units.values()))
    nn.init.constant_(unit.norm.weight, -2.0)  # its absolute value counts
    whole, plain = (synaptic_flow(network, (3, 32, 32), with_norm=norm)[0] for norm in (True, False))
    norms = sum(unit.norm is not None for unit in network.all_units.values())
    assert float(whole / plain) == pytest.approx(2 * (1 + 1e-5) ** (-norms / 2), rel=1e-9)
    network.train()
    assert float(synaptic_flow(network, (3, 32, 32))[0]) == float(whole)  # whatever mode the network is in


def test_flow_follows_the_masks_and_sums_over_filters():
    network = narrow(models.build("resnet20"), 2)
    Pruner(network, prune_type="structured", rate=0.5).update(0.5)
    batch = torch.zeros(2, 3, 32, 32), torch.tensor([0, 1])
    kinds = [Context(network, kind.groups, sampled(batch), 0) for kind in (Structured, Unstructured)]
    by_filter, by_weight = (scores("SynFlow", network, context) for context in kinds)
    for name, gate in ((name, unit.gate) for name, unit in network.units.items()):
        torch.testing.assert_close(by_filter[name], by_weight[name].flatten(1).sum(1))
        assert not by_filter[name][gate.mask == 0].any()


def test_a_flow_beyond_float64_is_told():
    network = Linears([[1e200, 1], [1, 1]], [[1e200, 1]])
    with pytest.raises(Failed, match="SynFlow: the sum of the outputs is inf"):
        scores("SynFlow", network, one_image(network, 1, 1))


def test_exponential_densities():
    updates = [n / 100 for n in range(1, 101)]
    densities = {n: 1 - 0.99 * exponential(n / 100, updates, 0.99) for n in (1, 50, 99, 100)}
    assert densities == pytest.approx({1: 0.954993, 50: 0.1, 99: 0.010471, 100: 0.01}, abs=5e-7)
    assert [1 - 0.99 * linear(n / 100, updates) for n in (1, 50, 99, 100)] == pytest.approx([0.9901, 0.505, 0.0199, 0.01])
    assert exponential(1.0, updates, 0.99) == 1
    assert exponential(0.3, updates, 0.0) == pytest.approx(0.3)  # nothing goes anyway


def left(network):
    return {name: int(unit.gate.mask.sum()) for name, unit in network.all_units.items()}


@pytest.mark.parametrize("schedule", ["exponential", "linear", "cubic"])
def test_rounds_are_made_before_the_first_step_to_the_exact_count(batch, monkeypatch, schedule):
    network = TwoBlocks()
    asked = []
    pruner = Pruner(
        network, prune_type="unstructured", criterion="SynFlow", scope=RAW, phase="init(rounds=5)", schedule=schedule, rate=0.9
    )
    pruner.begin(3, 2, sampled((batch[0].float(), batch[1])))
    total, update = pruner.entries, pruner.update

    def seen(rate):
        before = {name: gate.decide() for name, gate in pruner.gates.items()}
        update(rate)
        assert all(not (gate.decide() & ~before[name]).any() for name, gate in pruner.gates.items())
        asked.append((rate, pruner.cut()))

    monkeypatch.setattr(pruner, "update", seen)
    assert [pruner.before_step(epoch, step) for epoch in range(3) for step in range(2)] == [True] + [False] * 5
    assert [cut for _, cut in asked] == [int(rate * total + 1e-9) for rate, _ in asked]
    assert len(asked) == 5
    assert asked[-1] == (0.9, int(0.9 * total + 1e-9))
    if schedule == "exponential":
        assert [1 - rate for rate, _ in asked] == pytest.approx([0.1 ** (n / 5) for n in range(1, 6)])


def test_scores_are_measured_anew_in_each_round(batch):
    """One round of SynFlow cuts other weights than ten, and only of ten the layers' sums balance as they go."""
    masks = []
    for rounds in (1, 10):
        torch.manual_seed(0)
        network = TwoBlocks()
        chosen = {"criterion": "SynFlow", "scope": RAW, "phase": f"init(rounds={rounds})", "schedule": "exponential"}
        pruner = Pruner(network, prune_type="unstructured", rate=0.9, **chosen)
        pruner.begin(1, 2, sampled(batch))
        pruner.before_step(0, 0)
        masks.append({name: gate.mask.clone() for name, gate in pruner.gates.items()})
    assert sum(int(mask.sum()) for mask in masks[0].values()) == sum(int(mask.sum()) for mask in masks[1].values())
    assert differences(*masks) != []


def test_synflow_empties_no_layer_where_magnitude_does():
    """A VGG-16 of an eighth of the width at compression 10^2.5; the whole one is in benchmarks/LOG.md."""
    empty, counts = {}, {}
    for criterion, rounds in (("L1", 1), ("SynFlow", 100)):
        torch.manual_seed(0)
        network = narrow(models.build("vgg16"), 8)
        chosen = {"criterion": criterion, "scope": RAW, "phase": f"init(rounds={rounds})", "schedule": "exponential"}
        pruner = Pruner(network, prune_type="unstructured", rate=1 - 10**-2.5, **chosen)
        pruner.begin(1, 2, sampled((torch.zeros(2, 3, 32, 32), torch.tensor([0, 1]))))
        pruner.before_step(0, 0)
        empty[criterion], counts[criterion] = collapse(network), pruner.cut()
    assert counts["L1"] == counts["SynFlow"]
    assert empty["SynFlow"] == {"empty": [], "connected": True}
    assert len(empty["L1"]["empty"]) >= 3
    assert not empty["L1"]["connected"]


def test_collapse_sees_empty_layers_and_missing_paths():
    network = Linears([[1, 1], [1, 1]], [[1, 1], [1, 1]], [[1, 1]])
    assert collapse(network) == {"empty": [], "connected": True}
    pruner = Pruner(network, prune_type="unstructured", rate=0.5)
    pruner.gates["layer1"].set(torch.tensor([[1, 0], [0, 0]]))
    assert collapse(network)["connected"]
    pruner.gates["layer2"].set(torch.tensor([[0, 1]]))  # reads the unit that nothing reaches
    assert collapse(network) == {"empty": [], "connected": False}
    pruner.gates["layer1"].set(torch.zeros(2, 2))
    assert collapse(network) == {"empty": ["layer1"], "connected": False}


def test_a_stream_is_a_path_past_an_empty_layer(two_blocks):
    pruner = Pruner(two_blocks, rate=0.5)
    pruner.gates["a1"].set(torch.zeros(5))
    assert collapse(two_blocks) == {"empty": ["a1"], "connected": True}
    pruner.gates["stem"].set(torch.zeros(6))
    assert collapse(two_blocks) == {"empty": ["stem", "a1"], "connected": False}


def test_smart_ratios():
    """Two convolutions of 60 and 120 weights, L = 3: 12 and 6 parts; of the linear layer's 20, 0.3 stay. 80 of 200 in all."""
    torch.manual_seed(0)
    scores = {"first": torch.rand(60), "second": torch.rand(120), "last": torch.rand(20)}
    keep = smart_ratio(scores, 0.6, {"last"})
    # 74 = s (12 * 60 + 6 * 120): s = 37 / 720
    assert {name: int(mask.sum()) for name, mask in keep.items()} == {"first": 37, "second": 37, "last": 6}
    for name, mask in keep.items():
        assert scores[name][mask].min() > scores[name][~mask].max()
    keep = smart_ratio(scores, 0.3, {"last"})  # 134 would be 67 of 60: the first layer is whole
    assert {name: int(mask.sum()) for name, mask in keep.items()} == {"first": 60, "second": 74, "last": 6}
    keep = smart_ratio(scores, 0.05, {"last"})
    assert {name: int(mask.sum()) for name, mask in keep.items()} == {"first": 60, "second": 120, "last": 10}
    keep = smart_ratio(scores, 0.6, {"last"}, fall=2)  # 12 / 1 and 6 / 4 parts: 59.2 and 14.8
    assert {name: int(mask.sum()) for name, mask in keep.items()} == {"first": 59, "second": 15, "last": 6}
    with pytest.raises(ValueError, match="always keeps 8"):
        smart_ratio(scores, 0.97, {"last"})


def test_random_tickets_have_the_layers_densities_whatever_the_seed():
    counts = []
    for seed in (0, 1):
        network = narrow(models.build("vgg16"), 8)
        chosen = {"criterion": "random", "scope": "smart_ratio(fall=2)", "phase": "init", "seed": seed}
        pruner = Pruner(network, prune_type="unstructured", rate=0.9, **chosen)
        pruner.update(0.9)
        counts.append(left(network))
        assert pruner.cut() == int(0.9 * pruner.entries + 1e-9)
        weights = network.classifier.weight.numel()
        assert counts[-1]["classifier"] == int(0.3 * weights + 1e-9)
    assert counts[0] == counts[1]
    densities = [counts[0][name] / unit.weight.numel() for name, unit in network.units.items()]
    assert densities == sorted(densities, reverse=True)


def test_defaults_and_refusals():
    single = ["--prune_type", "unstructured"]
    settings = parse([*single, "--prune_imp", "SynFlow", "--prune_phase", "init(rounds=100)"])
    assert (settings.pruning.prune_schedule, settings.pruning.prune_scope) == ("exponential", RAW)
    assert parse([*single, "--prune_phase", "init(rounds=3)", "--prune_schedule", "linear"]).pruning.prune_schedule == "linear"
    assert parse([*single, "--prune_imp", "GraSP"]).pruning.prune_schedule == "constant"
    parse([*single, "--prune_imp", "SNIP(per_class=0)", "--score_batches", "2"])
    for flags, words in (
        (["--prune_imp", "SNIP", "--score_batches", "2"], "which reads 10 images of each class"),
        (["--prune_imp", "SynFlow", "--score_batches", "2"], "which reads no images"),
        (["--prune_phase", "init", "--prune_schedule", "exponential"], "--prune_schedule has no effect with --prune_phase init"),
        (["--prune_phase", "init(rounds=0)"], "at least 1"),
        (["--init", ".", "--prune_phase", "init(rounds=4)", "--reconstruct", "hessian"], "not init in 4 rounds"),
    ):
        with pytest.raises(Refused, match=words):
            parse([*single, *flags])


WEIGHTS = ["--prune_type", "unstructured", "--prune_rate", "0.9"]


def test_rounds_resume(tmp_path, monkeypatch):
    flags = ["--prune_imp", "SNIP(per_class=2)", "--prune_phase", "init(rounds=4)"]
    trains_and_resumes(tmp_path, monkeypatch, *WEIGHTS, *flags)


def test_a_kill_among_the_rounds_begins_them_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "build", lambda _, classes=10, **__: TwoBlocks(classes=classes))
    flags = [*STEPS, *WEIGHTS, "--prune_imp", "SynFlow", "--prune_phase", "init(rounds=6)"]
    run_program(*flags, "--out_dir", "whole")
    update, rounds = Pruner.update, []

    def killed(self, rate):
        rounds.append(rate)
        if len(rounds) == 4:
            raise KeyboardInterrupt
        update(self, rate)

    with monkeypatch.context() as patch:
        patch.setattr(Pruner, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            run_program(*flags, "--out_dir", "part")
    run_program("--resume", "part", "--quiet")
    assert differences(records("whole"), records("part")) == []


def test_a_collapse_is_said_and_kept_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "build", lambda _, classes=10, **__: narrow(models.network.build("vgg16", classes=classes), 8))
    flags = [*TINY_DATA[:4], "--image_size", "32", "--device", "cpu", "--epochs", "1", "--batch_size", "27", "--out_dir", "run"]
    rate = str(1 - 10**-2.5)
    run_program(*flags, "--prune_type", "unstructured", "--prune_rate", rate, "--prune_scope", RAW, "--prune_phase", "init")
    said = capsys.readouterr()
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["collapse"]
    assert found["empty"]
    assert found["connected"] is False
    lines = [line for line in said.err.splitlines() if line.startswith("layer collapse: ")]
    assert len(lines) == 1
    assert "no weight is left in" in lines[0]
    assert "no path leads from the input to the outputs" in lines[0]
    assert f"result collapse: {lines[0].removeprefix('layer collapse: ')}" in said.out.splitlines()


def test_where_nothing_is_left_the_run_ends(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = TwoBlocks(classes=3)
    for unit in network.all_units.values():
        nn.init.ones_(unit.weight)  # all tie, and the published threshold takes what ties
    monkeypatch.setattr(models, "build", lambda _, **__: network)
    scope = "global(normalise='none', floor=0, threshold='published')"
    with pytest.raises(Failed, match="nothing is left: all"):
        run_program(*STEPS, *WEIGHTS, "--prune_scope", scope, "--prune_phase", "init", "--out_dir", "run")
