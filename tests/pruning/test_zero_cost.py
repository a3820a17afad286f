"""Scores of untrained networks are what their formulas say, and share their quantities with the criteria."""

import math

import pytest
import torch
import torch.nn.functional as F
from promises import unchanged

from pruning.context import Context
from pruning.derivatives import synaptic_flow
from pruning.granularities import Unstructured
from pruning.saliency import spread_of
from settings.registry import CRITERIA, PROXIES

pytestmark = pytest.mark.core


def correlations(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_the_spread_of_correlations():
    assert spread_of(torch.eye(3, dtype=torch.float64)) == pytest.approx(-3.0000000001, abs=1e-9)
    assert spread_of(correlations([1, 0.5], [0.5, 1])) == pytest.approx(-2.378967, abs=1e-6)
    assert spread_of(correlations([1, 1], [1, 1])) == pytest.approx(-99989.680, abs=1e-2)
    assert math.isnan(spread_of(correlations([1, math.nan], [math.nan, 1])))


@pytest.fixture
def context(two_blocks, batch):
    return Context(two_blocks, Unstructured.groups, lambda: iter([batch]), 0)


@pytest.mark.parametrize("name", PROXIES.entries)
def test_scoring_is_repeatable_and_changes_nothing(two_blocks, context, name):
    with unchanged(two_blocks):
        first = PROXIES.get(name)(context)
        second = PROXIES.get(name)(Context(two_blocks, Unstructured.groups, context.sample, 0))
    assert type(first) is float
    assert first == second
    assert math.isfinite(first)


def gradients(network, batch):
    weights = [unit.weight for unit in network.all_units.values()]
    return weights, torch.autograd.grad(F.cross_entropy(network.train()(batch[0]), batch[1]), weights)


def test_scores_of_the_gradient(two_blocks, context, batch):
    weights, slopes = gradients(two_blocks, batch)
    wanted = {
        "snip": sum((weight * slope).abs().sum() for weight, slope in zip(weights, slopes, strict=True)),
        "plain": sum((weight * slope).sum() for weight, slope in zip(weights, slopes, strict=True)),
        "grad_norm": sum(slope.square().sum().sqrt() for slope in slopes),
    }
    for name, value in wanted.items():
        assert PROXIES.get(name)(context) == pytest.approx(float(value.detach()), rel=1e-9)


def test_grasp_and_synflow_are_those_of_the_criteria(two_blocks, context):
    keep = {
        name: CRITERIA.get("GraSP", per_class=0, temperature=1.0)(unit, context) for name, unit in two_blocks.all_units.items()
    }
    assert PROXIES.get("grasp")(context) == pytest.approx(-float(sum(score.sum() for score in keep.values())), rel=1e-9)
    total, flow = synaptic_flow(two_blocks, context.inputs, with_norm=False)
    assert PROXIES.get("synflow")(context) == pytest.approx(float(sum(score.sum() for score in flow.values())), rel=1e-12)
    # batch norm scales and shifts here, and the criterion keeps it
    assert float(total) != pytest.approx(float(synaptic_flow(two_blocks, context.inputs)[0]))


def test_fisher_by_a_factor_on_each_map_of_each_image(two_blocks, context, batch):
    """sum_hw of a * dL/da is the slope of the mean loss in a factor on the map."""
    factors, hooks = {}, []
    for name, unit in two_blocks.all_units.items():

        def scale(_, __, y, name=name):
            factors[name] = torch.ones(*y.shape[:2], dtype=y.dtype, requires_grad=True)
            return y * factors[name].view(*y.shape[:2], *[1] * (y.dim() - 2))

        hooks.append(unit.layer.register_forward_hook(scale))

    # units call F.conv2d and not their layers: the hooks are on a copy of the forward pass that does
    for unit in two_blocks.all_units.values():
        unit.multiply = lambda x, weight, with_bias=True, unit=unit: unit.layer(x)
    loss = F.cross_entropy(two_blocks.train()(batch[0]), batch[1])
    slopes = dict(zip(factors, torch.autograd.grad(loss, list(factors.values())), strict=True))
    for unit in two_blocks.all_units.values():
        del unit.multiply
    for hook in hooks:
        hook.remove()
    units = two_blocks.all_units
    wanted = sum(slope.square().mean(0).sum() / 2 * units[name].weight[0].numel() for name, slope in slopes.items())
    assert PROXIES.get("fisher")(context) == pytest.approx(float(wanted), rel=1e-9)


def test_jacob_cov_of_each_images_gradient(two_blocks, context, batch):
    images = batch[0].clone().requires_grad_()
    slopes = torch.autograd.grad(two_blocks.train()(images).sum(), images)[0].flatten(1)
    values = torch.linalg.eigvals(torch.corrcoef(slopes)).real + 1e-5  # as the authors take them
    assert PROXIES.get("jacob_cov")(context) == pytest.approx(float(-(values.log() + 1 / values).sum()), rel=1e-6)
