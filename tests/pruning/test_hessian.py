"""The Fisher, OBD, OBS and the update of survivors are held against worked examples, loops and plain inverses."""

import pytest
import torch
from promises import unchanged
from torch import nn
from toys import InGroups, images_for, toy

from models import Network, Unit
from pruning import Pruner, fisher
from pruning.context import Context, lift
from pruning.granularities import Kernels, Structured, Unstructured
from pruning.survivors import Survivors
from settings.registry import CRITERIA, RECONSTRUCTIONS
from tasks.classification import Classification

pytestmark = pytest.mark.core
KINDS = {"unstructured": Unstructured, "kernels": Kernels, "structured": Structured}


class Line(Network):
    """One linear layer with one output, and so a row of weights."""

    def __init__(self, weights):
        super().__init__()
        weights = torch.as_tensor(weights, dtype=torch.float64)
        self.only = Unit(nn.Linear(weights.numel(), 1, bias=False).double(), norm=False, activation=False)
        self.only.layer.weight.data = weights.view(1, -1)
        self.wire("only", "input", "output")

    def forward(self, x):
        return self.only(x)


class Given(Context):
    """A context in which the gradients of the images are given, (images, weights)."""

    def __init__(self, network, rows):
        rows = torch.as_tensor(rows, dtype=torch.float64)
        super().__init__(network, Unstructured.groups, lambda: iter([(rows, torch.zeros(len(rows)))]), 0)
        self.rows = rows

    def image_gradients(self, units, see, at_once=2):
        for part in self.rows.split(at_once):
            see("only", part[:, None])

    def measure(self):
        """The loss is the quadratic of the Fisher around the weights at the start."""
        away = self.network.only.weight.detach()[0] - self.start
        return float(away @ self.rows.T @ self.rows @ away / len(self.rows) / 2), 0.0


def rows_of(hessian) -> torch.Tensor:
    """Gradients of which the Fisher is this matrix."""
    hessian = torch.as_tensor(hessian, dtype=torch.float64)
    return torch.linalg.cholesky(hessian).T * len(hessian) ** 0.5


def scores(criterion, weights, rows):
    network = Line(weights)
    return lift(CRITERIA.get(criterion))(network.all_units, Given(network, rows))["only"].flatten()


def inverse_of(rows, block=100, damping=0.01):
    rows = torch.as_tensor(rows, dtype=torch.float64)
    ((name, inverse),) = fisher.inverses(Given(network := Line(rows[0]), rows), network.all_units, block, damping)
    assert name == "only"
    return inverse


EXAMPLE = [[2.0, 1.0], [1.0, 2.0]]


def test_the_worked_example_of_both_criteria():
    assert scores("OBD", [1.0, 2.0], rows_of(EXAMPLE)).tolist() == pytest.approx([1, 4])
    assert scores("OBS(damping=1e-9)", [1.0, 2.0], rows_of(EXAMPLE)).tolist() == pytest.approx([0.75, 3], rel=1e-6)


def test_the_worked_example_of_the_update():
    inverse = torch.linalg.inv(torch.tensor(EXAMPLE, dtype=torch.float64))[None]
    weight = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    changed, rise = fisher.without(inverse, weight, torch.tensor([[False, True]]), 100)
    assert changed.tolist() == [[0, 2.5]]
    assert rise == pytest.approx(0.75)


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_the_worked_example_of_the_recursion(at_once):
    rows = torch.tensor([[1.0, 2.0], [0.0, 1.0], [3.0, 1.0]], dtype=torch.float64)
    inverse = fisher.Inverse(torch.zeros(1, 2), 100, 0.01, 3)
    for part in rows.split(at_once):
        inverse.add(part[:, None])
    wanted = torch.tensor([[0.509852, -0.422763], [-0.422763, 0.848062]], dtype=torch.float64)
    torch.testing.assert_close(inverse.value[0], wanted, atol=1e-6, rtol=0)
    plain = torch.linalg.inv(0.01 * torch.eye(2, dtype=torch.float64) + rows.T @ rows / 3)
    torch.testing.assert_close(inverse.value[0], plain, rtol=1e-12, atol=1e-12)


def test_curvature_turns_the_order_of_magnitude_round():
    rows = rows_of(torch.diag(torch.tensor([0.1, 10.0])))
    assert scores("OBD", [2.0, 1.0], rows).tolist() == pytest.approx([0.2, 5])
    assert scores("L1", [2.0, 1.0], rows).tolist() == [2, 1]
    # far above the Fisher the damping decides, and with it the magnitude
    assert scores("OBS(damping=1e6)", [2.0, 1.0], rows).tolist() == pytest.approx([2e6, 0.5e6], rel=1e-4)


def test_gradients_of_images_are_not_those_of_a_batch():
    """Two images that pull in opposite directions: the gradient of their mean loss is 0, the Fisher is not."""
    assert scores("OBD", [1.0, 1.0], [[1.0, 3.0], [-1.0, -3.0]]).tolist() == pytest.approx([0.5, 4.5])


def loop(network, unit, images, labels):
    """Each image's gradient for the dense weight, by itself."""
    losses = Classification.image_losses(network.eval()(images), labels)
    return torch.stack([torch.autograd.grad(loss, unit.weight, retain_graph=True)[0] for loss in losses])


def gradients_of(network, images, labels, at_once=2):
    seen = {name: [] for name in network.all_units}
    context = Context(network, Unstructured.groups, lambda: iter([(images, labels)]), 0)
    with unchanged(network):
        context.image_gradients(network.all_units, lambda name, gradient: seen[name].append(gradient), at_once)
    assert context.images == len(images)
    return {name: torch.cat(parts) for name, parts in seen.items()}


@pytest.mark.parametrize("name", ["depthwise", "inverted", "dilated", "groups"])
def test_gradients_of_images_are_those_of_a_loop(name):
    """With strides, gaps, groups, no batch norm, and a batch that is not divided evenly."""
    network = toy(name) if name != "groups" else InGroups().double()
    images, labels = images_for(network, 5), torch.tensor([0, 1, 2, 3, 0])
    for unit, gradients in gradients_of(network, images, labels).items():
        wanted = loop(network, network.get_submodule(unit), images, labels)
        torch.testing.assert_close(gradients, wanted, rtol=1e-9, atol=1e-12)
        assert wanted.abs().max() > 0


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_masked_network(two_blocks, batch, kind, moving):
    """Under a mask that moves, what is cut has a gradient, which is straight-through; under one that does not, it has none."""
    pruner = Pruner(two_blocks, prune_type=kind, criterion="random", rate=0.5)
    pruner.look_at(lambda: iter([batch]), Classification)
    pruner.update(0.5)
    pruner.let_move(moving)
    for name, gradients in gradients_of(two_blocks, *batch).items():
        unit = two_blocks.get_submodule(name)
        torch.testing.assert_close(gradients, loop(two_blocks, unit, *batch), rtol=1e-9, atol=1e-12)
        if unit.gate is not None and kind != "structured":
            cut = KINDS[kind].groups(gradients[0])[~unit.gate.decide()]
            assert bool((cut != 0).any()) == moving


def test_blocks_are_those_of_the_whole_and_one_block_is_all_of_it():
    rows = torch.randn(9, 7, dtype=torch.float64)
    whole = rows.T @ rows / 9 + 0.01 * torch.eye(7, dtype=torch.float64)
    torch.testing.assert_close(inverse_of(rows)[0], torch.linalg.inv(whole))
    inverse = inverse_of(rows, block=3)  # 3, 3 and 1, with two that are no weights
    assert inverse.shape == (3, 3, 3)
    for number, part in enumerate((slice(0, 3), slice(3, 6), slice(6, 7))):
        weights = slice(0, part.stop - part.start)
        torch.testing.assert_close(inverse[number][weights, weights], whole[part, part].inverse())
    diagonal = inverse_of(rows, block=1).flatten()
    torch.testing.assert_close(diagonal, 1 / whole.diagonal())


def test_portions_give_what_all_at_once_gives(two_blocks, batch, monkeypatch):
    context = Context(two_blocks, Unstructured.groups, lambda: iter([batch]), 0)
    whole = dict(fisher.inverses(context, two_blocks.all_units, 20, 1e-3))
    passes, measure = [], context.image_gradients
    monkeypatch.setattr(context, "image_gradients", lambda units, see: passes.append([*units]) or measure(units, see))
    monkeypatch.setattr(fisher, "AT_ONCE", 270 * 20)
    parts = dict(fisher.inverses(context, two_blocks.all_units, 20, 1e-3))
    assert len(passes) > 2
    assert [name for portion in passes for name in portion] == list(whole) == list(parts)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("block", [4, 100])
def test_the_rise_is_the_least_and_what_was_predicted(block):
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(40, 10, generator=generator, dtype=torch.float64)
    hessian = rows.T @ rows / 40 + 0.1 * torch.eye(10, dtype=torch.float64)
    inverse = inverse_of(rows, block, 0.1)
    if block == 4:  # between blocks the model has no curvature
        where = torch.arange(10) // 4
        hessian = hessian * (where[:, None] == where)
    weight = torch.randn(1, 10, generator=generator, dtype=torch.float64)
    for _ in range(5):
        keep = torch.rand(1, 10, generator=generator) < 0.5
        changed, rise = fisher.without(inverse, weight, keep, block)
        away = (changed - weight)[0]
        assert (changed[~keep] == 0).all()
        assert rise == pytest.approx(float(away @ hessian @ away) / 2)
        for _ in range(20):  # any other weights with the same zeros
            other = away + keep[0] * torch.randn(10, generator=generator, dtype=torch.float64)
            assert float(other @ hessian @ other) / 2 > rise
    for index in range(10):  # one weight alone costs what its score says
        keep = torch.arange(10) != index
        each = float(weight[0, index] ** 2 / (2 * inverse.diagonal(dim1=1, dim2=2).flatten()[index]))
        assert fisher.without(inverse, weight, keep[None], block)[1] == pytest.approx(each)


@pytest.mark.parametrize("keep", [True, False])
def test_all_or_nothing(keep):
    inverse, weight = inverse_of(torch.randn(5, 6, dtype=torch.float64)), torch.randn(1, 6)
    changed, rise = fisher.without(inverse, weight, torch.full((1, 6), keep), 100)
    assert torch.equal(changed, weight * keep)
    assert (rise == 0) == keep


def test_filters_cost_the_sum_of_their_weights(two_blocks, batch):
    for criterion in ("OBD", "OBS"):
        each, together, kernels = (
            lift(CRITERIA.get(criterion))(two_blocks.units, Context(two_blocks, kind.groups, lambda: iter([batch]), 0))
            for kind in (Unstructured, Structured, Kernels)
        )
        for name, score in each.items():
            torch.testing.assert_close(score.sum((1, 2, 3)), together[name])
            torch.testing.assert_close(score.sum((2, 3)), kernels[name])


def survivors_of(network, batch, kind="unstructured", rate=0.5, criterion="OBS", told=None):
    pruner = Pruner(network, prune_type=kind, criterion=criterion, scope="global(normalise='none')", rate=rate)
    pruner.look_at(lambda: iter([batch]), Classification)
    return Survivors(pruner, lambda images: iter([batch]), *([told.append] if told is not None else []))


@pytest.mark.parametrize("kind", ["unstructured", "kernels"])
@pytest.mark.parametrize("steps", [1, 3])
def test_what_is_cut_is_zero_and_what_survives_has_moved(two_blocks, batch, kind, steps):
    before, told = {name: unit.weight.clone() for name, unit in two_blocks.all_units.items()}, []
    survivors = survivors_of(two_blocks, batch, kind, told=told)
    with torch.no_grad():
        records = RECONSTRUCTIONS.get(f"hessian(steps={steps})")(survivors)
    assert records == told
    assert [record["step"] for record in records] == list(range(1, steps + 1))
    total = survivors.pruner.entries
    parts = [1 - 0.5 ** (step / steps) for step in range(1, steps + 1)]
    assert [record["cut"] for record in records] == [int(part * total + 1e-9) for part in parts]
    for name, unit in survivors.units.items():
        weights, keep = KINDS[kind].groups(unit.weight.detach()), unit.gate.decide()
        assert (weights[~keep] == 0).all()
        assert not torch.equal(weights[keep], KINDS[kind].groups(before[name])[keep])
    assert all(record["images"] == 16 and record["predicted"] > 0 and record["seconds"] >= 0 for record in records)
    assert records[0]["loss"] > records[0]["loss_before"]


def test_steps_measure_anew_and_take_nothing_back(two_blocks, batch, monkeypatch):
    survivors, masks, measured = survivors_of(two_blocks, batch), [], []
    put, inverses = Survivors.put, fisher.inverses

    def seen(self, *arguments, **rest):
        put(self, *arguments, **rest)
        masks.append({name: unit.gate.decide() for name, unit in self.units.items()})

    def counted(*arguments):
        measured.append({name: unit.weight.detach().clone() for name, unit in two_blocks.all_units.items()})
        return inverses(*arguments)

    monkeypatch.setattr(Survivors, "put", seen)
    monkeypatch.setattr(fisher, "inverses", counted)
    RECONSTRUCTIONS.get("hessian(steps=2)")(survivors)
    assert all((masks[1][name] <= masks[0][name]).all() for name in masks[0])
    assert len(measured) == 4  # by the criterion and by the repair, in each step
    assert all(torch.equal(measured[0][name], measured[1][name]) for name in measured[0])
    assert not all(torch.equal(measured[1][name], measured[2][name]) for name in measured[0])


def test_the_update_is_better_than_none(two_blocks, batch):
    """By the loss itself, on the images that were measured, at a cut that is small enough for a quadratic model."""
    state = {name: value.clone() for name, value in two_blocks.state_dict().items()}
    survivors = survivors_of(two_blocks, batch, rate=0.1)
    (record,) = RECONSTRUCTIONS.get("hessian(damping=0.1)")(survivors)
    for unit in two_blocks.all_units.values():
        unit.gate = None
    two_blocks.load_state_dict(state)
    pruner = survivors_of(two_blocks, batch, rate=0.1).pruner
    pruner.update(0.1)
    plain, _ = Context(two_blocks, Unstructured.groups, lambda: iter([batch]), 0).measure()
    assert abs(record["loss"] - record["loss_before"]) < abs(plain - record["loss_before"])


def test_on_a_quadratic_the_loss_rises_as_predicted(monkeypatch):
    """The whole way, from the criterion's choice to the record, with a loss whose Hessian is the Fisher."""
    rows, network = torch.randn(30, 6, dtype=torch.float64), Line(torch.randn(6, dtype=torch.float64))
    given = Given(network, rows)
    given.start = network.only.weight.detach()[0].clone()
    survivors = survivors_of(network, (torch.randn(4, 6, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)), criterion="L1")
    monkeypatch.setattr(survivors, "context", lambda images: given)
    (record,) = RECONSTRUCTIONS.get("hessian(damping=1e-9)")(survivors)
    assert record["loss_before"] == 0
    assert record["loss"] == pytest.approx(record["predicted"], rel=1e-6)
    assert (record["cut"], record["of"]) == (3, 6)
