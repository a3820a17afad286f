"""This file differentiates a network for its weights, and leaves no trace in it: mode, buffers and switches are restored."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor

from models import Network

Batches = Iterable[tuple[Tensor, Tensor]]
ImageLosses = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def unchanged(network: Network, training: bool) -> Iterator[None]:
    """Within this block the network trains or evaluates; its mode and all its buffers are restored at the end."""
    mode, buffers = network.training, {name: buffer.clone() for name, buffer in network.named_buffers()}
    try:
        network.train_without_dropout() if training else network.eval()
        yield
    finally:
        network.train(mode)
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])


@contextmanager
def differentiable(weights: Sequence[Tensor]) -> Iterator[None]:
    """Within this block gradients are recorded, and for all these weights, also for those that are not trained."""
    frozen = [weight for weight in weights if not weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


def mean_gradients(network: Network, weights: Sequence[Tensor], batches: Batches, image_losses: ImageLosses) -> list[Tensor]:
    """Return the gradient of the mean loss of all images for each weight. The network is in the mode that it is in."""
    sums, images_seen = [torch.zeros_like(weight) for weight in weights], 0
    with differentiable(weights):
        for images, targets in batches:
            loss = image_losses(network(images), targets).sum()
            for total, gradient in zip(sums, torch.autograd.grad(loss, weights), strict=True):
                total += gradient
            images_seen += len(targets)
    return [total / images_seen for total in sums]


def hessian_gradients(
    network: Network, weights: Sequence[Tensor], batches: Batches, image_losses: ImageLosses, temperature: float
) -> list[Tensor]:
    """Return H g for each weight, where g is the gradient and H the Hessian of the mean loss of all images, in these weights.

    The outputs are divided by `temperature` first. H g is the gradient of <constant g, g>, which takes two passes.
    """
    batches = list(batches)
    images = sum(len(targets) for _, targets in batches)

    def losses(outputs: Tensor | tuple, targets: Tensor) -> Tensor:
        several = isinstance(outputs, tuple)
        return image_losses(tuple(part / temperature for part in outputs) if several else outputs / temperature, targets)

    first = mean_gradients(network, weights, batches, losses)
    products = [torch.zeros_like(weight) for weight in weights]
    with differentiable(weights):
        for inputs, targets in batches:
            loss = losses(network(inputs), targets).sum() / images
            gradients = torch.autograd.grad(loss, weights, create_graph=True)
            along = sum((constant * gradient).sum() for constant, gradient in zip(first, gradients, strict=True))
            for total, product in zip(products, torch.autograd.grad(along, weights), strict=True):
                total += product
    return products


@contextmanager
def _without_ceiling(network: Network) -> Iterator[None]:
    """Within this block a ReLU6 is a ReLU."""
    units = [unit for unit in network.all_units.values() if unit.activation == "relu6"]
    try:
        for unit in units:
            unit.activation = True
        yield
    finally:
        for unit in units:
            unit.activation = "relu6"


def synaptic_flow(network: Network, inputs: tuple[int, ...], with_norm: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
    """Return R and {unit: |w dR/dw|} of SynFlow (Tanaka et al., 2020, arXiv 2006.05467), in float64 and the weights' shapes.

    R is the sum of all outputs for one input of ones, of shape `inputs`, once every parameter and buffer is replaced by its
    absolute value, in evaluation and in float64, since R spans more than 30 orders of magnitude. Without biases the scores
    of each layer that all paths go through add up to R. Masks stay in force. A ReLU6 is a ReLU: beyond 6 nothing would flow.
    Without `with_norm` batch norm passes everything through as it is. The network's own tensors are not touched.
    """
    tensors = {
        name: value.detach().abs().double() if value.is_floating_point() else value
        for name, value in chain(network.named_parameters(), network.named_buffers())
    }
    units = network.all_units
    for name, unit in units.items():
        if unit.norm is not None and not with_norm:
            for part, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1 - unit.norm.eps)):
                tensors[f"{name}.norm.{part}"].fill_(value)
    weights = {name: tensors[f"{name}.layer.weight"].requires_grad_() for name in units}
    ones = torch.ones(1, *inputs, dtype=torch.float64, device=next(iter(weights.values())).device)
    with unchanged(network, training=False), _without_ceiling(network), torch.enable_grad():
        outputs = torch.func.functional_call(network, tensors, (ones,))
        total = sum(output.sum() for output in (outputs if isinstance(outputs, tuple) else (outputs,)))
        gradients = torch.autograd.grad(total, list(weights.values()))
    scores = {name: (weight * slope).abs().detach() for (name, weight), slope in zip(weights.items(), gradients, strict=True)}
    return total.detach(), scores
