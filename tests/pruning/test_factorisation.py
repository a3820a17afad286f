"""Factorised networks: which layers, at which ranks, what they cost, and that everything that prunes works on them."""

import copy

import pytest
import torch
from conftest import TwoBlocks
from torch import nn
from toys import TOYS, images_for, outputs_of, toy

import models
from deploy.folding import folded
from models import Network, Unit
from models.layers import conv_unit, initialise
from pruning import OutputGate, Pruner, accounting
from pruning.factorisation import svd, tucker
from pruning.factors import Layer, factorised
from pruning.removal import Removal
from settings.registry import FACTORISATIONS


class Strided(Network):
    """A convolution of 64 channels with a stride of 2 between two others, on images of 8 pixels."""

    def __init__(self, classes: int = 10):
        super().__init__()
        self.stem, self.middle = conv_unit(3, 64, 3), conv_unit(64, 64, 3, stride=2)
        self.classifier = Unit(nn.Linear(64, classes), norm=False, activation=False)
        self.wire("stem", "input", "stem")
        self.wire("middle", "stem", "middle")
        self.wire("classifier", "middle", "output")
        initialise(self)

    def forward(self, x):
        return self.classifier(self.middle(self.stem(x)).mean((2, 3)))


def fully(network: Network, size: int = 11) -> Network:
    """The network with every layer that can be factorised in factors of full rank."""
    full = {name: layer.full for name, layer in Layer.all_of(network, size, kernels=True).items() if not layer.reason}
    return factorised(network, full)[0]


@pytest.mark.core
@torch.no_grad()
@pytest.mark.parametrize("name", TOYS)
def test_full_ranks_are_the_original(name):
    network = toy(name)
    chain, x = fully(network), images_for(network)
    assert chain.factors
    for got, wanted in zip(outputs_of(chain(x)), outputs_of(network(x)), strict=True):
        assert (got - wanted).abs().max() <= 1e-9 * wanted.abs().max()
    assert chain.training is network.training


@torch.no_grad()
@pytest.mark.parametrize("arch", ["resnet20(widen=0.25)", "resnext11(groups=2, width=2)", "lenet5", "vgg16(widen=0.1)"])
def test_full_ranks_of_published_networks_are_the_original(arch):
    network = models.build(arch, classes=3, size=32).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    wanted, got = network(x), fully(network, 32)(x)
    assert (got - wanted).abs().max() <= 1e-9 * wanted.abs().max()
    assert len(fully(network, 32).all_units) > len(network.all_units)


@pytest.mark.core
def test_counts_are_exact_with_the_first_factor_at_the_input_s_resolution():
    network = Strided().eval()
    layer = Layer.all_of(network, 8, kernels=True)["middle"]
    assert layer.full == [64, 64]
    chain, (record,) = factorised(network, {"middle": [32, 32]})
    before, after = accounting.dense(network, 8), accounting.dense(chain, 8)
    assert before.parameters - after.parameters == 36_864 - 13_312 == layer.saved([32, 32])["parameters"]
    macs = 64 * 32 * 64 + (9 * 32 * 32 + 32 * 64) * 16  # 64 pixels are read, 16 written
    assert before.macs - after.macs == 36_864 * 16 - macs == layer.saved([32, 32])["macs"]
    assert after.parameters == sum(parameter.numel() for parameter in chain.parameters())
    assert (record["layer"], record["ranks"], record["of"]) == ("middle", [32, 32], [64, 64])
    assert 0 < record["error"] < 1


@pytest.mark.core
def test_a_chain_keeps_geometry_norm_and_wiring():
    network = Strided().eval()
    norm = network.middle.norm
    chain, _ = factorised(network, {"middle": [5, 6]})
    first, core, last = chain.middle
    assert [(*factor.weight.shape,) for factor in (first, core, last)] == [(5, 64, 1, 1), (6, 5, 3, 3), (64, 6, 1, 1)]
    assert (core.layer.stride, core.layer.padding, last.layer.stride) == ((2, 2), (1, 1), (1, 1))
    assert [factor.norm is not None for factor in (first, core, last)] == [False, False, True]
    assert [factor.activation for factor in (first, core, last)] == [False, False, True]
    assert all(factor.layer.bias is None for factor in (first, core, last))
    assert torch.equal(last.norm.running_var, norm.running_var)
    links = [(link.unit, link.source, link.target) for link in chain.links[1:4]]
    assert links == [
        ("middle.first", "stem", "middle.first"),
        ("middle.core", "middle.first", "middle.core"),
        ("middle.last", "middle.core", "middle"),
    ]
    assert network.get_submodule("middle").weight.shape == (64, 64, 3, 3)  # what it came from stays


@pytest.mark.core
def test_layers_stay_with_a_reason():
    grouped = models.build("resnext11(groups=2, width=2)", classes=3).eval()
    choice = tucker(grouped, 32, fraction=0.5)
    groups = [name for name, unit in grouped.all_units.items() if unit.in_groups]
    assert groups
    assert {choice.reasons[name] for name in groups} == {"a convolution in groups"}
    assert choice.ranks.keys() | choice.reasons.keys() == grouped.all_units.keys()
    network = Strided().eval()
    only = svd(network, 8, fraction=0.2)
    assert [*only.ranks] == ["classifier"]
    assert only.reasons["middle"] == "svd is of 1x1 convolutions and linear layers"
    # full ranks always cost more; 50 of 64 save parameters at a stride of 2, and no MACs
    assert tucker(network, 8, fraction=1.0).ranks == {}
    saved = Layer.all_of(network, 8, kernels=True)["middle"].saved([50, 50])
    assert saved["parameters"] > 0 > saved["macs"]
    assert tucker(network, 8, fraction=0.79).reasons["middle"] == "ranks 50 and 50 would save no MACs"


@pytest.mark.core
def test_vbmf_ranks_are_clamped_and_weakened():
    network = Strided().eval()  # fresh weights, whose rank is 0
    assert tucker(network, 8, ranks="VBMF").ranks["middle"] == [1, 1]
    assert tucker(network, 8, ranks="VBMF", weaken=0.25).ranks["middle"] == [17, 17]  # 1 + 63 / 4, rounded
    with torch.no_grad():
        low = torch.einsum("abij,ta,sb->tsij", torch.randn(4, 3, 3, 3), torch.randn(64, 4), torch.randn(64, 3))
        network.middle.layer.weight.copy_(low + 0.01 * torch.randn_like(low))
    assert tucker(network, 8, ranks="VBMF").ranks["middle"] == [3, 4]


@pytest.mark.core
@pytest.mark.parametrize("limit", [0.3, 0.5, 0.8])
@pytest.mark.parametrize(("option", "what"), [("macs", "macs"), ("params", "parameters")])
def test_a_budget_is_met_from_below_and_nearly(option, what, limit):
    network = models.build("resnet20", classes=10).eval()
    choice = tucker(network, 16, **{option: limit})
    with torch.device("meta"):
        chain = models.build("resnet20", classes=10)
        for name, ranks in choice.ranks.items():
            models.factorised.take_apart(chain, name, ranks)
    left = getattr(accounting.dense(chain.eval(), 16), what) / getattr(accounting.dense(network, 16), what)
    assert limit - 0.05 < left <= limit


@pytest.mark.core
@pytest.mark.parametrize("text", ["tucker(macs=0.001)", "tucker(params=0.01)", "svd(macs=0.5)"])
def test_a_budget_that_cannot_be_met_is_told(text):
    with pytest.raises(ValueError, match=r"cannot be reached: with all ranks at 1 0\.\d+ of them are left"):
        FACTORISATIONS.get(text)(models.build("resnet20").eval(), 16)


@pytest.mark.parametrize(("entry", "one", "other"), [
    ("tucker", "ranks='VBMF'", "ranks='VBMF', weaken=0.5"),
    ("tucker", "fraction=0.3", "fraction=0.4"),
    ("tucker", "macs=0.3", "macs=0.4"),
    ("tucker", "params=0.3", "params=0.4"),
    ("svd", "ranks='VBMF'", "ranks='VBMF', weaken=0.4"),
    ("svd", "fraction=0.2", "fraction=0.3"),
    ("svd", "macs=0.8", "macs=0.9"),
    ("svd", "params=0.8", "params=0.9"),
])  # fmt: skip
def test_two_values_of_an_option_give_two_networks(entry, one, other):
    network = models.build("lenet300" if entry == "svd" else "resnet20", size=8).eval()
    ranks = [FACTORISATIONS.get(f"{entry}({text})")(network, 8).ranks for text in (one, other)]
    assert ranks[0] != ranks[1]


def cut_at_random(network: Network, keep: float = 0.6) -> None:
    for unit in network.units.values():
        unit.gate = OutputGate(unit.filters).double()
        unit.gate.set(torch.rand(unit.filters) < keep)


@pytest.mark.core
@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ranks", ["full", "low"])
def test_masked_is_removed_on_a_factorised_network(ranks, seed):
    torch.manual_seed(seed)
    network = toy("dilated", seed)
    choice = {name: layer.full for name, layer in Layer.all_of(network, 11, kernels=True).items() if not layer.reason}
    if ranks == "low":
        choice = {name: [max(rank // 2, 1) for rank in full] for name, full in choice.items()}
    chain, x = factorised(network, choice)[0], images_for(network)
    assert {name.rpartition(".")[2] for name in chain.units} == {"first", "core", "last"}
    cut_at_random(chain)
    masked, removal = chain(x), Removal(chain)
    smaller = removal.compact().eval()
    assert removal.exact
    assert (smaller(x) - masked).abs().max() <= 1e-10 * max(float(masked.abs().max()), 1.0)
    assert accounting.dense(smaller, 11) == accounting.remaining(chain, 11)
    assert (folded(smaller)(x) - masked).abs().max() <= 1e-10 * max(float(masked.abs().max()), 1.0)
    # its shapes alone make it again, from a whole network
    again = toy("dilated").eval()
    again.reshape(smaller.shapes())
    again.take(smaller.state_dict())
    assert (again(x) - smaller(x)).abs().max() <= 1e-12
    assert again.factors == chain.factors


@torch.no_grad()
@pytest.mark.parametrize("name", ["inverted", "two outputs"])
def test_masked_is_removed_where_branches_are_factorised(name):
    network = toy(name)
    chain, x = fully(network), images_for(network)
    free = {unit for link in chain.links if link.ties for unit in _writers(chain, link.source) | {link.unit}}
    for path, unit in chain.units.items():
        if path not in free:
            unit.gate = OutputGate(unit.filters).double()
            unit.gate.set(torch.rand(unit.filters) < 0.6)
    masked = outputs_of(chain(x))
    for smaller in (Removal(chain).compact().eval(), folded(Removal(chain).compact())):
        for got, wanted in zip(outputs_of(smaller(x)), masked, strict=True):
            assert (got - wanted).abs().max() <= 1e-10 * wanted.abs().max()


def _writers(network: Network, node: str) -> set[str]:
    return {link.unit for link in network.links if link.target == node}


@pytest.mark.core
@torch.no_grad()
def test_a_pruned_network_is_factorised_and_one_that_was_is_so_again():
    network, x = TwoBlocks().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    cut_at_random(network)
    network.stem.gate.set(torch.ones(6))
    smaller = Removal(network).compact().eval()
    chain = fully(smaller, 8)
    assert (chain(x) - smaller(x)).abs().max() <= 1e-9
    twice = fully(chain, 8)
    assert any(name.count(".") == 2 for name in twice.all_units)
    assert (twice(x) - smaller(x)).abs().max() <= 1e-9
    again = TwoBlocks().double().eval()
    again.reshape(twice.shapes())
    again.take(twice.state_dict())
    assert (again(x) - twice(x)).abs().max() <= 1e-12


@pytest.mark.parametrize("criterion", ["L1", "FPGM", "correlation"])
def test_criteria_score_the_filters_of_factors(criterion, two_blocks, batch):
    chain = fully(two_blocks, 8)
    pruner = Pruner(chain, criterion=criterion, rate=0.4)
    pruner.update(0.4)
    assert set(pruner.units) == set(chain.units)
    masked, smaller = chain.eval()(batch[0]), Removal(chain).compact().eval()
    torch.testing.assert_close(smaller(batch[0]), masked)
    assert any(unit.filters for name, unit in smaller.units.items() if name.endswith(".core"))


def test_a_factorised_network_learns(two_blocks, batch):
    chain = fully(two_blocks, 8).train()
    before = copy.deepcopy(chain.state_dict())
    optimizer = torch.optim.SGD(chain.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(chain(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(not torch.equal(before[f"{name}.layer.weight"], unit.weight) for name, unit in chain.all_units.items())
