"""These tests hold sparse variational dropout against worked values, against drawn weights, and against thresholded weights."""

import pytest
import torch
import torch.nn.functional as F
from conftest import TwoBlocks
from torch import nn
from toys import InGroups

from models import Unit
from models.layers import conv_unit
from pruning import Learner, accounting
from pruning.gates.variational import Variational
from pruning.removal import ungated

pytestmark = pytest.mark.core

LAYERS = {
    "linear": lambda: nn.Linear(6, 4),
    "convolution": lambda: nn.Conv2d(6, 4, 3, stride=2, padding=1),
    "in groups": lambda: nn.Conv2d(6, 4, 3, dilation=2, groups=2),
}


def gated(layer: nn.Module, log_alpha=None, **options) -> Unit:
    """A unit in float64 without batch norm or ReLU, its weights with these log alpha, one or as many as there are."""
    unit = Unit(layer, norm=False, activation=False).double()
    unit.gate = Variational(unit, **options)
    if log_alpha is not None:
        spread = torch.as_tensor(log_alpha, dtype=torch.float64)
        unit.gate.log_sigma2.data = (spread + torch.log(unit.weight.detach() ** 2 + 1e-8)).expand_as(unit.weight).clone()
    return unit


def test_the_worked_divergences():
    log_alpha = torch.tensor([-8.0, -3.0, 0.0, 3.0, 8.0], dtype=torch.float64)
    wanted = [4.635899, 2.115590, 0.431239, 0.025420, 0.000168]
    torch.testing.assert_close(Variational.divergence(log_alpha).tolist(), wanted, rtol=0, atol=1e-6)
    falling = Variational.divergence(torch.linspace(-8, 8, 999, dtype=torch.float64)).diff()
    assert (falling < 0).all()


def test_log_alpha_is_that_of_variance_and_weight_and_has_bounds():
    unit = gated(nn.Linear(4, 1))
    unit.layer.weight.data = torch.tensor([[0.5, -0.5, 0.0, 1e6]], dtype=torch.float64)
    unit.gate.log_sigma2.data = torch.tensor([[-1.0, -1.0, 0.0, 0.0]], dtype=torch.float64)
    ratio = -1 - 2 * torch.log(torch.tensor(0.5)).item()
    torch.testing.assert_close(unit.gate.log_alpha(unit.weight).flatten().tolist(), [ratio, ratio, 8.0, -8.0], rtol=0, atol=1e-7)
    assert Variational(unit).log_sigma2.unique().tolist() == [-10]


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_a_product_has_the_mean_and_the_variance_that_drawn_weights_give_it(make):
    unit = gated(make(), log_alpha=-1.0).train()
    x = torch.randn(2, 6, 7, 7).double() if unit.is_convolution else torch.randn(2, 6).double()
    weight, draws = unit.weight.detach(), 3_000
    noise = torch.randn(400, *weight.shape, dtype=torch.float64) * torch.exp(torch.tensor(-0.5)) * weight.abs()
    with torch.no_grad():
        mean, variance = unit.multiply(x, weight), unit.multiply(x**2, weight**2 * torch.exp(torch.tensor(-1.0)), with_bias=False)
        got = torch.stack([unit(x) for _ in range(draws)])
        explicit = torch.stack([unit.multiply(x, weight + each) for each in noise])
    for sample in (got, explicit):
        error = (variance / len(sample)).sqrt()
        assert ((sample.mean(0) - mean).abs() < 5 * error).all()
        assert ((sample.var(0) / variance - 1).abs() < 6 * (2 / len(sample)) ** 0.5).all()


def test_noise_is_of_each_image_and_each_pixel():
    unit = gated(LAYERS["convolution"](), log_alpha=0.0).train()
    x = torch.randn(1, 6, 7, 7).double().expand(3, -1, -1, -1)
    noise = unit(x) - unit.multiply(x, unit.weight)
    assert noise.unique().numel() == noise.numel()


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_evaluation_is_that_of_the_weights_under_the_threshold(make):
    log_alpha = torch.linspace(-6, 6, make().weight.numel()).view(make().weight.shape)
    unit = gated(make(), log_alpha).eval()
    x = torch.randn(2, 6, 7, 7).double() if unit.is_convolution else torch.randn(2, 6).double()
    kept = log_alpha < 3
    assert torch.equal(unit.gate.decide(), kept)
    torch.testing.assert_close(unit(x), unit.multiply(x, unit.weight * kept), rtol=0, atol=1e-12)
    assert torch.equal(unit(x), unit(x))
    assert torch.equal(unit.live.bool(), kept.flatten(1).any(1))


def test_the_threshold_is_3_and_belongs_to_what_is_cut():
    unit = gated(nn.Linear(3, 1), torch.tensor([[3 - 1e-9, 3 + 1e-9, 7.0]], dtype=torch.float64))
    assert unit.gate.decide().tolist() == [[True, False, False]]
    assert gated(nn.Linear(1, 1), 2.0, threshold=1.5).gate.decide().tolist() == [[False]]


def test_the_penalty_grows_from_epoch_5_to_20():
    gate = gated(nn.Linear(6, 4), 0.0, weight=2.0).gate
    for epochs, part in ((0.0, 0.0), (4.99, 0.0), (5.0, 0.0), (8.0, 0.2), (12.5, 0.5), (20.0, 1.0), (150.0, 1.0)):
        gate.before_step(epochs, images=50)
        assert gate.warmth(epochs) == pytest.approx(part)
        assert gate.penalty().item() == pytest.approx(2 * part / 50 * 24 * 0.431239, rel=2e-6)
    gate = gated(nn.Linear(6, 4), begin=0.0, full=0.0).gate
    assert gate.warmth(0.0) == 1
    with pytest.raises(ValueError, match="cannot be full at epoch 2, before it begins at 5"):
        gated(nn.Linear(6, 4), full=2.0)


def test_the_penalty_is_about_weights_alone():
    unit = gated(nn.Linear(6, 4), 0.0)
    unit.gate.before_step(20.0, images=1)
    unit.gate.penalty().backward()
    assert unit.layer.bias.grad is None
    assert (unit.gate.log_sigma2.grad < 0).all()  # more noise costs less
    assert (unit.layer.weight.grad * unit.layer.weight > 0).all()  # and so does a smaller weight


def test_train_clip_takes_out_of_training_what_is_cut():
    """Without noise on what stays, training then computes what evaluation does."""
    log_alpha = torch.where(torch.rand(4, 6) < 0.5, 5.0, -8.0)
    x = torch.randn(3, 6).double()
    for train_clip in (False, True):
        unit = gated(nn.Linear(6, 4), log_alpha, train_clip=train_clip)
        torch.manual_seed(0)
        difference = (unit.train()(x) - unit.eval()(x)).abs().max()
        assert (difference < 0.2) == train_clip


def test_a_trained_network_is_that_of_its_thresholded_weights(batch):
    network = TwoBlocks().double()
    learner = Learner(network, prune_type="unstructured", gate="variational(begin=0.0, full=0.0, learning_rate=30.0)")
    learner.steps, learner.images = 1, 16
    optimizer = torch.optim.SGD(network.parameters(), 0.2)
    network.train()
    with torch.no_grad():
        for gate in learner.gates.values():
            gate.log_sigma2 += 5
    for step in range(20):
        learner.before_step(step, 0)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(batch[0]), batch[1]) + sum(gate.penalty() for gate in learner.gates.values())
        loss.backward()
        optimizer.step()
    network.eval()
    assert 0 < learner.cut() < learner.entries
    plain = ungated(network)
    zeros = sum(int((unit.weight == 0).sum()) for unit in plain.all_units.values())
    assert zeros == learner.cut() == accounting.zeros(network)[0]
    torch.testing.assert_close(plain(batch[0]), network(batch[0]), rtol=0, atol=1e-10)


def test_convolutions_in_groups_and_linear_layers_have_gates_too():
    learner = Learner(InGroups(), prune_type="unstructured", gate="variational")
    assert learner.gates.keys() == {"stem", "grouped", "classifier"}
    assert learner.entries == sum(unit.weight.numel() for unit in learner.units.values())


def test_under_autocast_the_noise_is_that_of_float32():
    unit = conv_unit(8, 8, 3)
    unit.gate = Variational(unit)
    unit.gate.log_sigma2.data.fill_(-3)
    x, found = torch.randn(4, 8, 8, 8), []
    for enabled in (False, True):
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(unit.gate.product(unit, x).float())
    assert F.cosine_similarity(found[0].flatten(), found[1].flatten(), 0) > 0.999
