"""This file scores whole networks without training them (Abdelfattah et al., 2021, arXiv 2101.08134).

Each public function is a score. It takes the context of an untrained network, whose sample is one batch of training images
and whose pieces are single weights, and returns a number. Scores of weights are summed over all convolutions and linear
layers. The network trains, so that batch norm uses the statistics of the batch, unless a score says otherwise.
"""

import torch
from torch import Tensor

from pruning.context import Context
from pruning.derivatives import synaptic_flow, unchanged
from pruning.probes import ProductProbe, backwards, maps_of
from pruning.saliency import spread_of


def synflow(context: Context) -> float:
    """Sum of |w * dR/dw| as SynFlow has it (Tanaka et al., 2020), with batch norm left out."""
    _, flow = synaptic_flow(context.network, context.inputs, with_norm=False)
    return sum(float(score.sum()) for score in flow.values())


def snip(context: Context) -> float:
    """Sum of |w * g|, the criterion SNIP (Lee et al., 2019)."""
    return _summed("SNIP(per_class=0)", context)


def grasp(context: Context) -> float:
    """Sum of -w * (H g), the criterion GraSP with the authors' sign (Wang et al., 2020), at temperature 1."""
    return -_summed("GraSP(per_class=0, temperature=1.0)", context)


def fisher(context: Context) -> float:
    """Sum over weights of half the mean over images of (sum of a * dL/da)^2, a the map of the weight's filter.

    a is the product of the layer, before batch norm, and L the mean loss of the batch (Theis et al., 2018, arXiv 1801.05787).
    """
    network, total = context.network, 0.0
    units = network.all_units

    def see(name: str, _, output: Tensor, gradient: Tensor) -> None:
        nonlocal total
        slopes = (maps_of(output) * maps_of(gradient)).sum((2, 3)).double() / len(output)
        weights = units[name].weight[0].numel()
        total += float(slopes.square().mean(0).sum()) / 2 * weights

    with unchanged(network, training=True):
        backwards(network, units, ProductProbe, see, context.sample(), context.task.image_losses)
    return total


def grad_norm(context: Context) -> float:
    """Sum over layers of the Euclidean norm of the loss's gradient."""
    return sum(float(context.gradient(unit).double().norm()) for unit in context.network.all_units.values())


def jacob_cov(context: Context) -> float:
    """How little the images' input gradients correlate (Mellor et al., 2020, arXiv 2006.04647); see `spread_of`.

    The gradient of an image is that of the sum of all outputs. NaN where an image has none.
    """
    (images, _), *_ = context.sample()
    images = images.detach().clone().requires_grad_()
    with unchanged(context.network, training=True), torch.enable_grad():
        (slopes,) = torch.autograd.grad(context.network(images).sum(), images)
    return spread_of(torch.corrcoef(slopes.flatten(1).double()))


def plain(context: Context) -> float:
    """Sum of w * g over all weights, with its sign."""
    units = context.network.all_units.values()
    return sum(float((unit.weight.detach() * context.gradient(unit)).double().sum()) for unit in units)


def _summed(criterion: str, context: Context) -> float:
    """Return the sum of what a criterion gives all weights."""
    return sum(float(score.double().sum()) for score in context.score(criterion, context.network.all_units).values())
