"""These tests check what filters do while they are cut: whether they learn, what they are scored by, and when they return."""

import pytest
import torch
import torch.nn.functional as F

import models
from models.joint import Joint
from pruning import OutputGate, Pruner
from pruning.phases import dynamic
from pruning.removal import ungated
from pruning.scopes import global_, local

# channel 1 of the stream is cut in all that write it: behind both joints it is exactly 0
CUT = {"stem": [1], "a1": [0], "a2": [1, 5], "b1": [4], "b2": [0, 1]}
OWN = "output(scored='own')"


def cut_network(network, batch, gate, moving=True, **options):
    """A pruner on the network, these filters cut."""
    pruner = Pruner(network, gate=gate, rate=0.3, **options)
    pruner.begin(4, 2, lambda: iter([batch]))
    for name, mask in pruner.gates.items():
        keep = torch.ones(len(mask.mask))
        keep[CUT[name]] = 0
        mask.set(keep)
    pruner.let_move(moving)
    return pruner


def gradients(network, batch):
    network.zero_grad()
    F.cross_entropy(network(batch[0]), batch[1]).backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


def test_only_from_the_right_do_the_writers_of_a_dead_channel_learn(two_blocks, batch):
    seen = {}
    for joint in ("zero", "right"):
        pruner = cut_network(two_blocks, batch, f"output(joint='{joint}')")
        seen[joint] = gradients(two_blocks, batch)
        # a2 and b2 write channel 1, which the stem does not
        sizes = torch.stack([seen[joint][f"{name}.layer.weight"][1].norm() for name in ("a2", "b2")])
        assert (sizes > 1e-4).all() if joint == "right" else (sizes == 0).all()
        assert pruner.not_learning() == (0 if joint == "right" else 2)
    for name, zero in seen["zero"].items():
        unit = name.split(".")[0]
        live = [index for index in range(len(zero)) if index not in CUT.get(unit, [])]
        torch.testing.assert_close(seen["right"][name][live], zero[live], rtol=0, atol=1e-13)


@pytest.mark.parametrize("arch", ["resnet20", "resnet20(shortcut='pad')"])
def test_live_gradients_do_not_depend_on_the_joint(arch):
    """On whole networks, with streams that begin with a projection or with padded channels; outputs are the same too."""
    torch.manual_seed(0)
    network = models.build(arch).double()
    batch = torch.randn(6, 3, 16, 16, dtype=torch.float64), torch.randint(10, (6,))
    results = {}
    for joint in ("zero", "right"):
        pruner = Pruner(network, gate=f"output(joint='{joint}')", rate=0.6, residual="grouped")
        pruner.begin(4, 2, lambda: iter([batch]))
        pruner.update(0.6)
        pruner.let_move(True)
        state = {name: value.clone() for name, value in network.state_dict().items()}
        results[joint] = network(batch[0]), gradients(network, batch), pruner.not_learning()
        network.load_state_dict(state)
    assert torch.equal(results["zero"][0], results["right"][0])
    assert results["zero"][2] > 50
    assert results["right"][2] < 0.2 * results["zero"][2]
    live = {name: unit.gate.mask.bool() for name, unit in network.units.items()}
    for name, gradient in results["zero"][1].items():
        unit = name.rsplit(".", 2)[0]
        rows = live.get(unit, torch.ones(len(gradient), dtype=torch.bool))
        torch.testing.assert_close(results["right"][1][name][rows], gradient[rows], rtol=0, atol=1e-13)


def test_fixed_masks_are_plain_products_at_every_joint(two_blocks, batch):
    cut_network(two_blocks, batch, "output(joint='right')", moving=False)
    for name, gradient in gradients(two_blocks, batch).items():
        unit = name.split(".")[0]
        assert (gradient[CUT.get(unit, [])] == 0).all()


def test_the_smaller_network_has_plain_joints(two_blocks, batch):
    cut_network(two_blocks, batch, "output(joint='right')")
    assert two_blocks.a.from_the_right
    assert not any(joint.from_the_right for joint in ungated(two_blocks).joints.values())


def test_the_derivative_from_the_right():
    """1 at 0 and above, 0 below, in each precision."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        branch = torch.tensor([-1.0, -1e-6, 0, -0.0, 1e-6, 2], dtype=dtype).view(1, 6, 1, 1).requires_grad_(True)
        joint = Joint()
        joint.from_the_right = True
        output = joint(branch, torch.zeros_like(branch))
        assert torch.equal(output, branch.clamp_min(0))
        assert torch.autograd.grad(output.sum(), branch)[0].flatten().tolist() == [0, 0, 1, 1, 1, 1]


SCORED = ["HRank", "energy", "APoZ", "mean_activation", "Taylor2017", "Taylor2019", "syn", "grad"]


@pytest.mark.parametrize("criterion", SCORED)
def test_a_cut_writer_has_a_score_of_its_own(two_blocks, batch, criterion):
    by_joint = cut_network(two_blocks, batch, "output", criterion=criterion).scores()
    by_own = cut_network(two_blocks, batch, OWN, criterion=criterion).scores()
    for name in ("a2", "b2"):
        assert by_joint[name][1] == 0
        assert by_own[name][1] > 0
    if criterion in SCORED[4:]:  # by gradients, what is live has the same score; Taylor2017 divides by the layer's norm
        for name, score in by_joint.items():
            live = [index for index in range(len(score)) if index not in CUT[name]]
            ours, theirs = (one[live] / (one[live].norm() if criterion == "Taylor2017" else 1) for one in (by_own[name], score))
            torch.testing.assert_close(ours, theirs)
    assert not two_blocks.a.from_the_right


def test_own_maps_are_those_of_the_unit_alone(two_blocks, batch):
    """As if nothing else were added: the joint's output for a stream of 0."""
    pruner = cut_network(two_blocks, batch, OWN, criterion="mean_activation")
    scores = pruner.scores()
    masks = {name: gate.mask.view(-1, 1, 1) for name, gate in pruner.gates.items()}
    network = ungated(two_blocks).eval()
    with torch.no_grad():
        inner = network.a1(network.stem(batch[0]) * masks["stem"])
        branch = network.a2(inner * masks["a1"])
        alone = network.a(branch, torch.zeros_like(branch))
    torch.testing.assert_close(scores["a1"], inner.mean((0, 2, 3)))
    torch.testing.assert_close(scores["a2"], alone.mean((0, 2, 3)))


def test_hysteresis_by_hand():
    """Of [1.0, 1.1, 1.3, 2.0] two go; 1.0 is kept so far and 1.3 is not."""
    scores = {"a": torch.tensor([1.0, 1.1, 1.3, 2.0])}
    kept = {"a": torch.tensor([True, False, False, True])}
    for scope in (global_, local):
        for fraction, keep in ((0.0, [0, 0, 1, 1]), (0.25, [0, 0, 1, 1]), (0.35, [1, 0, 0, 1])):
            chosen = scope(scores, 0.5, lambda: kept, hysteresis=fraction)["a"]
            assert chosen.tolist() == [bool(value) for value in keep], (scope.__name__, fraction)
        # without masks so far nothing is raised
        assert scope(scores, 0.5, hysteresis=0.35)["a"].tolist() == [False, False, True, True]


@pytest.mark.parametrize("residual", ["free", "grouped"])
@pytest.mark.parametrize("fraction", [0.0, 0.3])
def test_what_returns_exceeds_what_it_replaces(two_blocks, batch, residual, fraction):
    pruner = Pruner(two_blocks, scope=f"local(hysteresis={fraction})", rate=0.5, residual=residual)
    generator, exceeded, moved = torch.Generator().manual_seed(0), True, 0
    pruner.update(0.5)
    for _ in range(20):
        with torch.no_grad():
            for unit in pruner.units.values():
                scale = 1 + 0.5 * torch.randn(unit.filters, generator=generator, dtype=torch.float64)
                unit.layer.weight.mul_(scale.abs().view(-1, 1, 1, 1))
        before = pruner.decisions.gather({name: gate.decide() for name, gate in pruner.gates.items()})
        scores = pruner.decisions.merge(pruner.scores())
        pruner.update(0.5)
        now = pruner.decisions.gather({name: gate.decide() for name, gate in pruner.gates.items()})
        for layer, score in scores.items():
            assert int(now[layer].sum()) == int(before[layer].sum())
            returned, left = score[now[layer] & ~before[layer]], score[before[layer] & ~now[layer]]
            moved += len(returned)
            if len(returned):
                exceeded &= bool(returned.min() > (1 + fraction) * left.max())
                assert returned.min() > (1 + fraction) * left.min()
    assert moved > 0
    assert exceeded or fraction == 0


@pytest.mark.parametrize(
    ("rarer", "times"),
    [(0.0, range(1, 19)), (1.0, [1, 2, 4, 8, 16]), (0.5, [1, 2, 3, 4, 6, 8, 12, 18]), (2.0, [1, 3, 9])],
)
def test_updates_become_rarer(rarer, times):
    """At the first whole number from each power of 1 + rarer on."""
    positions, moves_until = dynamic(99, range(5, 5 * 19, 5), rarer=rarer)
    assert list(positions) == [5 * time for time in times]
    assert moves_until == 99
    assert list(dynamic(6, range(5, 5 * 19, 5), rarer=rarer)[0]) == [5]


@pytest.mark.parametrize(("frequency", "at"), [("1ep", [0, 7, 21]), ("2it", [1, 3, 8, 17])])
def test_rarer_updates_of_a_run(two_blocks, batch, frequency, at):
    """Four epochs of seven steps; --prune_freq comes round at steps 0, 7, 14, 21, or at 1, 3, 5, 8, 10, 12, 15, 17, ..."""
    pruner = Pruner(two_blocks, phase="dynamic(rarer=1.0)", frequency=frequency, until=0.9, rate=0.5)
    pruner.begin(4, 7, lambda: iter([batch]))
    assert [round(progress * 28) for progress in pruner.updates] == at


def test_what_moved_is_told(two_blocks, batch):
    pruner = cut_network(two_blocks, batch, "output", scope="local")
    assert pruner.take_moves() == {"mask_changes": 0, "returned": 0, "left": 0, "not_learning": 0}  # no step yet
    gradients(two_blocks, batch)
    cut = {name: ~gate.decide() for name, gate in pruner.gates.items()}
    pruner.update(0.3)
    now = {name: ~gate.decide() for name, gate in pruner.gates.items()}
    returned, left = (sum(int((before[name] & ~later[name]).sum()) for name in cut) for before, later in ((cut, now), (now, cut)))
    silent = sum(int((now[name] & (unit.weight.grad.flatten(1).abs().sum(1) == 0)).sum()) for name, unit in pruner.units.items())
    assert min(returned, left) > 0
    wanted = {"mask_changes": returned + left, "returned": returned, "left": left, "not_learning": silent}
    assert pruner.take_moves() == wanted
    assert pruner.take_moves() == {**wanted, "mask_changes": 0, "returned": 0, "left": 0}


def test_an_unknown_gate_is_refused(two_blocks):
    with pytest.raises(ValueError, match="option 'joint' of gate 'output' is one of 'zero', 'right'"):
        Pruner(two_blocks, rate=0.3, gate="output(joint='left')")
    with pytest.raises(ValueError, match="gate 'weight' has no option 'joint'"):
        Pruner(two_blocks, rate=0.3, gate="weight(joint='right')")
    assert OutputGate(3).joint == "zero"
