"""Criteria, budgets, scopes, gates, penalties and forms take an adopted module as they take the networks here."""

import copy

import pytest
import torch
from own_modules import Unpadded, mixed, settled
from toys import NoiseTask

import models
from deploy.export import export
from deploy.folding import folded
from deploy.measure import plain
from models import Card
from pruning import Learner, Pruner, accounting
from pruning.groups import check_comparable
from pruning.removal import Removal
from settings.registry import CRITERIA, FORMS, GATES, REGULARIZERS, SCOPES

pytestmark = pytest.mark.core

SHORTER = {"LcP": "LcP(evaluations=8)"}  # a search that is long by default
CARD = Card("away.py:build", list("abcd"), 16, [120.0] * 3, [60.0] * 3)


def adopted(seed: int = 0) -> models.Network:
    return models.adopt(mixed(seed), torch.zeros(1, 3, 16, 16)).double()


def images(count: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 16, 16, generator=generator, dtype=torch.float64), torch.arange(count) % 4


def pruned(network: models.Network, count: int = 24, **options) -> Pruner:
    pruner = Pruner(network, **{"rate": 0.4, "image_size": 16, **options})
    pruner.begin(epochs=4, steps=2, sample=lambda: iter([images(count)]))
    pruner.update(pruner.rate)
    return pruner


@torch.no_grad()
def assert_it_leaves_exactly(network: models.Network) -> models.Network:
    """Removed equals masked to 1e-12 of the largest output, folded too, and the size is that which was foretold."""
    smaller, x = Removal(network.eval()).compact().eval(), images(8)[0]
    masked = network(x)
    for form in (smaller, folded(smaller), folded(smaller, 8)):
        assert (form(x) - masked).abs().max() <= 1e-12 * masked.abs().max()
    assert accounting.remaining(network, 16) == accounting.dense(smaller, 16)
    assert accounting.dense(smaller, 16).filters < accounting.dense(network, 16).filters
    return smaller


@pytest.mark.parametrize("name", CRITERIA.entries)
def test_each_criterion_cuts_what_leaves_exactly(name):
    network, chosen = adopted(), SHORTER.get(name, name)
    try:
        check_comparable(network, chosen)
    except ValueError as error:
        # some of its units have no ReLU, as those of MobileNetV2, and some no batch norm
        assert "counts the zeros behind a ReLU" in str(error) or "compares scales of batch norm" in str(error)  # noqa: PT017
        return
    pruned(network, 600 if "more images than filters" in CRITERIA.entries[name].traits else 24, criterion=chosen)
    assert_it_leaves_exactly(network)


@pytest.mark.parametrize("budget", ["macs", "parameters"])
@pytest.mark.parametrize("residual", ["free", "grouped"])
def test_budgets_are_met(budget, residual):
    network = adopted()
    whole = accounting.dense(network, 16)
    pruned(network, rate=0.5, budget=budget, residual=residual)
    left = getattr(accounting.dense(assert_it_leaves_exactly(network), 16), budget) / getattr(whole, budget)
    assert 0.4 < left <= 0.5


@pytest.mark.parametrize(
    "scope", [name for name, entry in SCOPES.entries.items() if not {"filters only", "single weights"} & entry.traits.keys()]
)
@pytest.mark.parametrize("gate", ["output", "soft"])
def test_each_scope_and_mask(scope, gate):
    network = adopted()
    pruned(network, scope=scope, gate=gate)
    assert_it_leaves_exactly(network)


def test_what_filters_before_batch_norm_still_give_is_folded():
    """A masked filter gives a constant at the published place, also behind pooling: exact where no padding sees 0 instead."""
    network = models.adopt(settled(Unpadded()), torch.zeros(1, 3, 16, 16)).double()
    pruned(network, gate="weight", rate=0.5)
    assert_it_leaves_exactly(network)


@pytest.mark.parametrize("gate", [name for name, entry in GATES.entries.items() if "structured" in entry.traits.get("of", ())])
def test_each_gate_that_learns_takes_it(gate):
    network = models.adopt(settled(Unpadded()), torch.zeros(1, 3, 16, 16))
    Learner(network, prune_type="structured", gate=gate)
    network.train()(images()[0].float()).square().sum().backward()
    assert all(value.grad is not None for unit in network.units.values() for value in unit.gate.parameters())


@pytest.mark.parametrize("name", [name for name, entry in REGULARIZERS.entries.items() if entry.kind != "proximal"])
def test_each_penalty_has_a_gradient(name):
    network = adopted()
    if "learned scales" in REGULARIZERS.entries[name].traits:
        return
    REGULARIZERS.get(name)(network).backward()
    assert any(value.grad is not None and value.grad.abs().sum() > 0 for value in network.parameters())


@pytest.mark.parametrize("kind", ["dense", "structured"])
@pytest.mark.parametrize("name", FORMS.entries)
def test_each_form_is_in_a_file_that_computes_it(name, kind, tmp_path):
    network = adopted().float()
    if kind == "structured":
        Pruner(network, rate=0.4).update(0.4)
        network = Removal(network).compact()
    task = NoiseTask(size=16)
    form = FORMS.get(name, **({"batches": 2} if name == "deep_compression" else {}))(copy.deepcopy(plain(network)), task)
    path = tmp_path / f"form{form.suffix}"
    form.save(path, CARD, False)
    inputs = images(12)[0].float()
    with torch.no_grad():
        wanted, got = form.network.eval()(inputs), form.read(path)(inputs)
    assert (got - wanted).abs().max() <= max(form.tolerance, 1e-4) * wanted.abs().max()


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_each_export_computes_what_the_network_does(suffix, tmp_path):
    network = adopted().float()
    Pruner(network, rate=0.4).update(0.4)
    result = export(Removal(network).compact(), str(tmp_path / f"m.{suffix}"), images(8)[0].float(), CARD)
    assert result["difference"] < 1e-5
