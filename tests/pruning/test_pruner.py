"""These tests run the four answers together, over the registries, so that a new one is tested the day it is added."""

import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils import prune

from pruning import Pruner
from pruning.context import Context
from pruning.schedules import constant, cubic, linear
from settings.registry import CRITERIA, GRANULARITIES, PHASES, SCHEDULES, SCOPES

LEGAL = [
    (granularity, criterion)
    for granularity, criterion in itertools.product(GRANULARITIES.entries, CRITERIA.entries)
    if granularity == "structured" or "filters only" not in CRITERIA.entries[criterion].traits
]


SHORTER = {"LcP": "LcP(evaluations=8)"}  # a search that is long by default
# scopes that need a file, for the network of these tests: it keeps half of the filters of each layer
KEPT = {"kept": {"stem": 3, "a1": 3, "a2": 3, "b1": 2, "b2": 3}}
SCAN = {"rates": [0.5], "layers": {name: [10.0] for name in KEPT["kept"]}}


@pytest.fixture
def scope_named(tmp_path):
    """A scope's name as it is typed."""
    for name, content in (("preset", KEPT), ("sensitivity", SCAN)):
        (tmp_path / name).write_text(json.dumps(content))
    typed = {"preset": f"preset(name='{tmp_path / 'preset'}')", "sensitivity": f"sensitivity(file='{tmp_path / 'sensitivity'}')"}
    return lambda name: typed.get(name, name)


def sample(batch):
    images, labels = batch
    return lambda: iter([(images[:8], labels[:8]), (images[8:], labels[8:])])


def begin(network, batch, **options):
    pruner = Pruner(network, **{"rate": 0.5, **options})
    pruner.begin(epochs=8, steps=2, sample=sample(batch))
    return pruner


def run(pruner, epochs=8, steps=2):
    """The masks before every step of a run, and whether they moved straight through."""
    seen = []
    for epoch, step in itertools.product(range(epochs), range(steps)):
        pruner.before_step(epoch, step)
        masks = {name: gate.mask.clone() for name, gate in pruner.gates.items()}
        seen.append((masks, next(iter(pruner.gates.values())).straight_through))
        with torch.no_grad():
            for unit in pruner.units.values():
                unit.layer.weight.add_(0.3 * torch.randn(unit.layer.weight.shape, dtype=torch.float64))
    return seen


def cut(masks):
    return sum(int((mask == 0).sum()) for mask in masks.values())


@pytest.mark.parametrize(("granularity", "criterion"), LEGAL)
@pytest.mark.parametrize("scope", SCOPES.entries)
@pytest.mark.parametrize("phase", PHASES.entries)
def test_every_answer_with_every_other(two_blocks, batch, scope_named, granularity, criterion, scope, phase):
    if granularity != "structured" and "filters only" in SCOPES.entries[scope].traits:
        return  # files are about filters
    if granularity != "unstructured" and "single weights" in SCOPES.entries[scope].traits:
        return
    chosen = {"criterion": SHORTER.get(criterion, criterion), "scope": scope_named(scope)}
    pruner = begin(two_blocks, batch, prune_type=granularity, phase=phase, **chosen)
    seen = run(pruner)
    sizes = [gate.mask.numel() for gate in pruner.gates.values()]
    k = sum(int(0.5 * size) for size in sizes) if scope == "local" else int(0.5 * sum(sizes))
    masks, moving = seen[-1]
    assert not moving  # fixed at the end
    assert cut(masks) == k
    assert all(((mask == 0) | (mask == 1)).all() and mask.any() for mask in masks.values())
    counts = [cut(masks) for masks, _ in seen]
    assert counts == {"dynamic": [k] * 16, "init": [k] * 16, "after": [0] * 12 + [k] * 4, "iterative": [k] * 16}[phase]


@pytest.mark.core
@pytest.mark.parametrize("phase", PHASES.entries)
def test_when_masks_move(two_blocks, batch, phase):
    seen = run(begin(two_blocks, batch, phase=phase))
    changed = [
        step for step in range(1, 16) if any(not torch.equal(seen[step][0][name], seen[step - 1][0][name]) for name in seen[0][0])
    ]
    moving = [straight_through for _, straight_through in seen]
    if phase == "dynamic":  # every epoch of two steps up to three quarters of eight
        assert set(changed) <= {2, 4, 6, 8, 10}
        assert len(changed) >= 4
        assert moving == [True] * 12 + [False] * 4
    else:
        assert changed == ([12] if phase == "after" else [])  # iterative: the constant schedule has cut all in the first round
        assert not any(moving)


@pytest.mark.core
def test_rounds_cut_equal_parts_and_take_nothing_back(two_blocks, batch):
    pruner = begin(two_blocks, batch, rate=0.6, phase="iterative(rounds=3)", schedule="linear")
    assert [position * 16 for position in pruner.updates] == [0, 4, 8]
    seen = run(pruner)
    total = sum(gate.mask.numel() for gate in pruner.gates.values())
    parts = [int(0.6 * n / 3 * total + 1e-9) for n in (1, 2, 3)]
    assert [cut(masks) for masks, _ in seen] == [parts[0]] * 4 + [parts[1]] * 4 + [parts[2]] * 8
    for (before, _), (after, _) in itertools.pairwise(seen):
        assert all((after[name] <= before[name]).all() for name in before)
    assert [linear(p, [0.0, 0.25, 0.5]) for p in (0.0, 0.25, 0.5)] == [1 / 3, 2 / 3, 1.0]


@pytest.mark.core
@pytest.mark.parametrize("budget", ["macs", "parameters"])
def test_rounds_with_a_budget_take_nothing_back(two_blocks, batch, budget):
    pruner = begin(
        two_blocks, batch, rate=0.6, phase="iterative(rounds=6)", schedule="linear", budget=budget, round_to=2, image_size=8
    )
    seen = run(pruner)
    for (before, _), (after, _) in itertools.pairwise(seen):
        assert all((after[name] <= before[name]).all() for name in before)
    assert cut(seen[-1][0]) > cut(seen[0][0]) > 0


@pytest.mark.core
@pytest.mark.parametrize(
    "criterion", ["FPGM(by_norm=0.3)", "FPGM(distance='cos')", "PFA(counts='KL')", "Taylor2019(at='weight')", "NISP(rate=0.4)"]
)
def test_options_of_a_criterion_change_nothing_either(two_blocks, batch, criterion):
    pruner = begin(two_blocks, batch, criterion=criterion)
    pruner.gates["a1"].set(torch.tensor([1, 1, 0, 1, 1]))
    state = {name: value.clone() for name, value in two_blocks.state_dict().items()}
    pruner.scores()
    assert all(torch.equal(state[name], value) for name, value in two_blocks.state_dict().items())


@pytest.mark.core
def test_iterations_are_counted_from_the_fourth_as_published(two_blocks, batch):
    pruner = Pruner(two_blocks, rate=0.5, frequency="4it", until=1.0)
    pruner.begin(epochs=2, steps=9, sample=sample(batch))
    seen = run(pruner, epochs=2, steps=9)
    assert [cut(masks) > 0 for masks, _ in seen[:4]] == [False, False, False, True]
    changed = {s for s in range(1, 18) if any(not torch.equal(seen[s][0][n], seen[s - 1][0][n]) for n in seen[0][0])}
    assert changed <= {3, 7, 9 + 3, 9 + 7}
    assert len(changed) >= 3


@pytest.mark.core
@pytest.mark.parametrize(("granularity", "criterion"), LEGAL)
@pytest.mark.parametrize("training", [True, False])
def test_scoring_changes_nothing(two_blocks, batch, granularity, criterion, training):
    pruner = begin(two_blocks, batch, prune_type=granularity, criterion=criterion)
    pruner.update(0.5)
    two_blocks.train(training)
    two_blocks.a1.layer.weight.grad = torch.ones_like(two_blocks.a1.layer.weight)
    two_blocks.b1.layer.weight.requires_grad_(False)
    state = {name: value.clone() for name, value in two_blocks.state_dict().items()}
    random_state = torch.get_rng_state()
    scores = pruner.scores()
    assert all(torch.equal(state[name], value) for name, value in two_blocks.state_dict().items())
    assert torch.equal(random_state, torch.get_rng_state())
    assert two_blocks.training is training
    assert not two_blocks.b1.layer.weight.requires_grad
    two_blocks.b1.layer.weight.requires_grad_(True)
    assert (two_blocks.a1.layer.weight.grad == 1).all()
    assert two_blocks.b1.layer.weight.grad is None
    again = pruner.scores()
    for name, score in scores.items():
        assert score.shape == pruner.gates[name].mask.shape
        assert torch.isfinite(score).all()
        assert torch.equal(score, again[name])


OPTION_VALUES = {
    # two values that must give two results, each in a setting where it matters
    ("criterion", "L1", "reduce"): [
        {"criterion": f"L1(reduce='{v}')", "scope": "global(normalise='none')"} for v in ("sum", "mean")
    ],
    ("criterion", "FPGM", "distance"): [{"criterion": f"FPGM(distance='{v}')"} for v in ("L2", "cos")],
    ("criterion", "FPGM", "by_norm"): [{"criterion": f"FPGM(by_norm={v})"} for v in (0.0, 0.4)],
    ("criterion", "APoZ", "counts"): [{"criterion": f"APoZ(counts='{v}')"} for v in ("given", "deviation")],
    ("criterion", "HRank", "ties"): [{"criterion": f"HRank(ties='{v}')"} for v in ("energy", "index")],
    ("criterion", "Taylor2017", "inside"): [{"criterion": f"Taylor2017(inside='{v}')"} for v in ("image", "sample")],
    ("criterion", "Taylor2017", "flops"): [
        {"criterion": f"Taylor2017(flops={v})", "scope": "global(normalise='none')"} for v in (0.0, 1e6)
    ],
    ("criterion", "Taylor2019", "at"): [{"criterion": f"Taylor2019(at='{v}')"} for v in ("gate", "filter")],
    ("criterion", "Taylor2019", "average"): [{"criterion": f"Taylor2019(average='{v}')"} for v in ("batch", "image")],
    ("criterion", "OBS", "block"): [{"criterion": f"OBS(block={v})", "prune_type": "kernels"} for v in (1, 50)],
    ("criterion", "OBS", "damping"): [{"criterion": f"OBS(damping={v})", "prune_type": "kernels"} for v in (1e-5, 0.1)],
    ("criterion", "PFA", "counts"): [{"criterion": f"PFA(counts='{v}')"} for v in ("given", "KL")],
    ("criterion", "PFA", "tau"): [{"criterion": f"PFA(counts='energy', tau={v})"} for v in (0.5, 0.95)],
    ("criterion", "NISP", "last"): [{"criterion": f"NISP(last='{v}')"} for v in ("infFS", "equal")],
    ("criterion", "NISP", "rate"): [{"criterion": f"NISP(rate={v})"} for v in (0.0, 0.6)],
    ("criterion", "LcP", "of"): [
        {"criterion": f"LcP(of='{v}', evaluations=20)", "scope": "global(normalise='none')"} for v in ("L2", "bn_scale")
    ],
    ("criterion", "LcP", "learn"): [
        {"criterion": f"LcP(learn='{v}', evaluations=20)", "scope": "global(normalise='none')"}
        for v in ("offset", "scale_and_offset")
    ],
    ("criterion", "LcP", "evaluations"): [
        {"criterion": f"LcP(evaluations={v})", "scope": "global(normalise='none')"} for v in (1, 30)
    ],
    ("criterion", "zero_fraction", "counts"): [
        {"criterion": f"zero_fraction(counts='{v}', threshold=0.1)"} for v in ("given", "multilayer")
    ],
    ("criterion", "zero_fraction", "threshold"): [{"criterion": f"zero_fraction(threshold={v})"} for v in (0.1, 0.3)],
    ("criterion", "zero_fraction", "drop"): [{"criterion": f"zero_fraction(drop={v})"} for v in (0.01, 0.9)],
    **{
        ("criterion", "zero_fraction", option): [
            {"criterion": f"zero_fraction(counts='multilayer', threshold=0.1, {others}, {option}={v})"} for v in (0.2, 0.6)
        ]
        for option, others in (
            ("own", "own_at_least=0.1"),
            ("own_at_least", "readers=0.1"),
            ("readers", "own_at_least=0.1"),
            ("least_left", "own=0.1, own_at_least=0.05"),
        )
    },
    ("criterion", "from_initial", "counts"): [
        {"criterion": f"from_initial(counts='{v}')", "prune_type": "unstructured"} for v in ("given", "signs")
    ],
    ("criterion", "from_initial", "by"): [
        {"criterion": f"from_initial(by='{v}')", "prune_type": "unstructured"} for v in ("large_init", "movement")
    ],
    ("criterion", "from_initial", "signs"): [
        {"criterion": f"from_initial(by='large_final', signs='{v}')", "prune_type": "unstructured"} for v in ("any", "same")
    ],
    ("criterion", "SNIP", "per_class"): [{"criterion": f"SNIP(per_class={v})"} for v in (0, 1)],
    ("criterion", "GraSP", "per_class"): [{"criterion": f"GraSP(per_class={v})"} for v in (0, 1)],
    ("criterion", "GraSP", "temperature"): [{"criterion": f"GraSP(temperature={v})"} for v in (0.5, 200.0)],
    ("phase", "init", "rounds"): [
        {"phase": f"init(rounds={v})", "schedule": "linear", "criterion": "SynFlow", "prune_type": "unstructured", "rate": 0.9}
        for v in (1, 10)
    ],
    ("scope", "smart_ratio", "keep"): [{"scope": f"smart_ratio(keep={v})", "prune_type": "unstructured"} for v in (0.3, 0.6)],
    ("scope", "smart_ratio", "fall"): [{"scope": f"smart_ratio(fall={v})"} for v in (0.0, 2.0)],
    ("phase", "dynamic", "rarer"): [{"phase": f"dynamic(rarer={v})"} for v in (0.0, 1.0)],
    ("phase", "iterative", "rounds"): [{"phase": f"iterative(rounds={v})", "schedule": "linear"} for v in (2, 4)],
    ("phase", "iterative", "start"): [{"phase": f"iterative(start={v})", "schedule": "linear"} for v in (0.0, 0.5)],
    ("scope", "global", "normalise"): [{"scope": f"global(normalise='{v}')"} for v in ("mean", "none")],
    ("scope", "global", "floor"): [{"scope": f"global(floor={v}, normalise='none')", "rate": 0.6} for v in (1, 2)],
    ("scope", "global", "hysteresis"): [{"scope": f"global(hysteresis={v})"} for v in (0.0, 0.5)],
    ("scope", "local", "hysteresis"): [{"scope": f"local(hysteresis={v})"} for v in (0.0, 0.5)],
    ("scope", "global", "threshold"): [{"scope": f"global(threshold='{v}')"} for v in ("exact", "published")],
    ("scope", "deviation", "q"): [{"scope": f"deviation(q={v})", "prune_type": "unstructured"} for v in (0.5, 1.0)],
    ("scope", "deviation", "floor"): [{"scope": f"deviation(q=100.0, floor={v})", "prune_type": "unstructured"} for v in (1, 2)],
    ("schedule", "cubic", "reach"): [{"schedule": f"cubic(reach={v})"} for v in (0.25, 0.75)],
}
OPTIONS = [
    (registry, name, option)
    for registry, entries in (("criterion", CRITERIA), ("scope", SCOPES), ("phase", PHASES), ("schedule", SCHEDULES))
    for name, entry in entries.entries.items()
    for option in entry.options
    if (name, option) not in (("local", "floor"), ("preset", "name"), ("sensitivity", "file"))  # see test_scopes
]


@pytest.mark.core
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_has_an_effect(two_blocks, batch, option):
    state = {name: value.clone() for name, value in two_blocks.state_dict().items()}
    results = []
    for settings in OPTION_VALUES[option]:
        for unit in two_blocks.all_units.values():
            unit.gate = None
        two_blocks.load_state_dict(state)
        torch.manual_seed(0)
        with torch.no_grad():  # layers of different size, so that comparability matters
            two_blocks.a1.layer.weight.mul_(3)
        results.append(run(begin(two_blocks, batch, **settings)))
    first, second = results
    assert any(not torch.equal(a[name], b[name]) for (a, _), (b, _) in zip(first, second, strict=True) for name in a)


@pytest.mark.core
def test_l1_and_l2_are_those_of_torch(two_blocks):
    """One layer, pruned by torch.nn.utils.prune."""
    for criterion, n in (("L1", 1), ("L2", 2)):
        Pruner(two_blocks, criterion=criterion, scope="local", rate=0.5).update(0.5)
        for unit in two_blocks.units.values():
            layer = torch.nn.Conv2d(1, 1, 1)
            layer.weight = torch.nn.Parameter(unit.weight.detach().clone())
            prune.ln_structured(layer, "weight", amount=unit.filters // 2, n=n, dim=0)
            assert torch.equal(unit.gate.mask, layer.weight_mask[:, 0, 0, 0].float())


@pytest.mark.core
def test_unstructured_l1_is_that_of_torch(two_blocks):
    pruner = Pruner(two_blocks, prune_type="unstructured", scope="global(normalise='none', floor=0)", rate=0.7)
    pruner.update(0.7)
    layers = []
    for unit in pruner.units.values():
        layers.append(torch.nn.Module())
        layers[-1].weight = torch.nn.Parameter(unit.weight.detach().clone())
    k = int(0.7 * sum(layer.weight.numel() for layer in layers))
    prune.global_unstructured([(layer, "weight") for layer in layers], prune.L1Unstructured, amount=k)
    for gate, layer in zip(pruner.gates.values(), layers, strict=True):
        assert torch.equal(gate.mask, layer.weight_mask.float())


@pytest.mark.core
def test_grad_and_syn_are_what_they_say(two_blocks, batch):
    images, labels = batch
    two_blocks.train()
    total = 0
    for part in (slice(0, 8), slice(8, 16)):
        total = total + F.cross_entropy(two_blocks(images[part]), labels[part], reduction="sum")
    gradient = torch.autograd.grad(total / 16, two_blocks.b1.layer.weight)[0]
    context = Context(two_blocks, GRANULARITIES.get("structured").groups, sample(batch), 0)
    grad, syn = CRITERIA.get("grad"), CRITERIA.get("syn")
    torch.testing.assert_close(grad(two_blocks.b1, context), gradient.abs().sum((1, 2, 3)))
    torch.testing.assert_close(syn(two_blocks.b1, context), (gradient * two_blocks.b1.weight).detach().abs().sum((1, 2, 3)))


@pytest.mark.core
def test_random_is_fixed_by_the_seed_and_moves_with_it(two_blocks, batch):
    masks = []
    for seed in (0, 0, 1):
        pruner = begin(two_blocks, batch, criterion="random", seed=seed, until=1.0)
        seen = run(pruner)
        assert all(torch.equal(seen[0][0][name], masks_now[name]) for masks_now, _ in seen for name in masks_now)
        masks.append(seen[0][0])
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])
    assert any(not torch.equal(masks[0][name], masks[2][name]) for name in masks[0])


@pytest.mark.core
def test_a_masked_filter_returns_when_it_grows(two_blocks, batch):
    pruner = begin(two_blocks, batch, scope="global(normalise='none')")
    pruner.update(0.5)
    name = next(name for name, gate in pruner.gates.items() if not gate.mask.all())
    filter_ = int((pruner.gates[name].mask == 0).nonzero()[0])
    with torch.no_grad():
        two_blocks.units[name].layer.weight[filter_] *= 100
    pruner.take_moves()["mask_changes"]
    pruner.update(0.5)
    assert pruner.gates[name].mask[filter_] == 1
    assert pruner.take_moves()["mask_changes"] == 2  # one came, one went
    assert pruner.take_moves()["mask_changes"] == 0


@pytest.mark.core
def test_by_gradient_descent_too(two_blocks, batch):
    """A cut filter that the loss wants grows under SGD until its norm brings it back."""
    images, labels = batch
    pruner = begin(two_blocks, batch, until=1.0, rate=0.3)
    optimizer = torch.optim.SGD(two_blocks.parameters(), 0.5, 0.9)
    changes = 0
    for epoch in range(8):
        for step in range(2):
            pruner.before_step(epoch, step)
            optimizer.zero_grad()
            F.cross_entropy(two_blocks(images), labels).backward()
            optimizer.step()
        changes += pruner.take_moves()["mask_changes"] * (epoch > 0)  # the first masks are no change of mind
    assert changes >= 2


@pytest.mark.core
@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 7, 10, 300])
@pytest.mark.parametrize("every", [1, 3])
def test_the_cubic_ramp_is_whole_by_half_the_epochs(epochs, every):
    updates = [epoch / epochs for epoch in range(0, epochs, every)]
    due = [cubic(update, updates) for update in updates]
    assert due == sorted(due)
    assert all(rate == 1 for epoch, rate in zip(range(0, epochs, every), due, strict=True) if epoch >= epochs / 2)
    assert 1 in due
    assert all(0 <= rate <= 1 for rate in due)


@pytest.mark.core
def test_the_cubic_ramp_is_the_published_one():
    """s_f = 0.9: 0, 0.5203125, 0.7875, 0.9 at 0, 1/4, 1/2 and all of the way."""
    updates = [0, 0.25, 0.5, 1]
    assert [0.9 * cubic(progress, updates, reach=1.0) for progress in updates] == pytest.approx([0, 0.5203125, 0.7875, 0.9])
    assert [constant(progress, updates) for progress in updates] == [1.0] * 4


@pytest.mark.core
@pytest.mark.parametrize(
    ("frequency", "until", "schedule"), [("3it", 1.0, "cubic"), ("1ep", 0.3, "cubic"), ("2it", 0.9, "cubic(reach=1)")]
)
def test_the_ramp_ends_at_the_rate_whenever_masks_are_made(two_blocks, batch, frequency, until, schedule):
    pruner = Pruner(two_blocks, rate=0.5, frequency=frequency, until=until, schedule=schedule)
    pruner.begin(epochs=4, steps=7, sample=sample(batch))
    seen = run(pruner, epochs=4, steps=7)
    assert cut(seen[-1][0]) == 14
    if schedule == "cubic":
        assert cut(seen[14][0]) == 14  # by half of the run


@pytest.mark.core
def test_a_run_without_a_single_mask_is_refused(two_blocks, batch):
    pruner = Pruner(two_blocks, rate=0.5, frequency="8it")
    with pytest.raises(ValueError, match="no mask would ever be made in 4 epochs of 7 steps"):
        pruner.begin(epochs=4, steps=7, sample=sample(batch))
