"""This file defines probes, which show a unit's output while a network is scored."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from models import Network, Unit
from models.layers import Gate


def maps_of(x: Tensor) -> Tensor:
    """Return an output as maps, (images, filters, height, width); those of a linear layer have one pixel."""
    return x if x.dim() == 4 else x[..., None, None]


class Probe(Gate):
    """A probe stands in a unit's gate slot during a scoring: it shows the output before the mask to `see`, then applies the mask.

    With `differentiable` that output has a gradient, also where no weight before it has one.
    """

    def __init__(self, gate: Gate | None, see: Callable[[Tensor], None], differentiable: bool):
        super().__init__()
        self.gate, self.see, self.differentiable = gate or Gate(), see, differentiable

    @property
    def scales(self) -> bool:
        return self.gate.scales

    @property
    def live(self) -> Tensor | None:
        return self.gate.live

    def weight(self, weight: Tensor) -> Tensor:
        return self.gate.weight(weight)

    def product(self, unit: Unit, x: Tensor) -> Tensor:
        return self.gate.product(unit, x)

    def decide(self) -> Tensor:
        return self.gate.decide()

    def forward(self, unit: Unit, x: Tensor) -> Tensor:
        if self.differentiable and not x.requires_grad:
            x.requires_grad_(True)
        self.see(x)
        return self.gate.multiplied(x)


class ProductProbe(Probe):
    """A probe that shows the product of the unit's layer with its input, before batch norm, instead of the output."""

    def product(self, unit: Unit, x: Tensor) -> Tensor:
        product = self.gate.product(unit, x)
        if self.differentiable and not product.requires_grad:
            product.requires_grad_(True)
        self.see(product)
        # without batch norm the unit's ReLU would be taken in place of what was seen
        return product if unit.norm is not None else product.clone()

    def forward(self, unit: Unit, x: Tensor) -> Tensor:
        return self.gate.multiplied(x)


@contextmanager
def watch(unit: Unit, see: Callable[[Tensor], None], differentiable: bool = False, probe: type[Probe] = Probe) -> Iterator[None]:
    """Within this block `see` is called with every output of the unit, before its mask, or with what another probe shows."""
    gate = unit.gate
    unit.gate = probe(gate, see, differentiable)
    try:
        yield
    finally:
        unit.gate = gate


def backwards(
    network: Network,
    units: dict[str, Unit],
    probe: type[Probe],
    see: Callable,
    batches: Iterable,
    image_losses: Callable[[Tensor, Tensor], Tensor],
    at_once: int | None = None,
) -> None:
    """Call `see(name, x, output, gradient)` for every unit and part of the batches.

    `x` is the unit's input, `output` what the probe shows, and `gradient` that of each image's loss for this output. A part
    is a batch, or `at_once` images of it.
    """
    inputs, outputs = {}, {}
    with torch.enable_grad(), ExitStack() as watched:
        for name, unit in units.items():
            hook = unit.register_forward_pre_hook(lambda _, x, name=name: inputs.update({name: x[0].detach()}))
            watched.callback(hook.remove)
            show = watch(unit, lambda x, name=name: outputs.update({name: x}), differentiable=True, probe=probe)
            watched.enter_context(show)
        for batch, targets in batches:
            size = at_once or len(batch)
            for images, labels in zip(batch.split(size), targets.split(size), strict=True):
                loss = image_losses(network(images), labels).sum()
                gradients = torch.autograd.grad(loss, [outputs[name] for name in units])
                for name, gradient in zip(units, gradients, strict=True):
                    see(name, inputs[name], outputs[name].detach(), gradient)


def weight_gradients(unit: Unit, x: Tensor, gradient: Tensor) -> Tensor:
    """Return each image's gradient for the unit's dense weight, (images, *weight.shape).

    `x` is what the unit's layer reads, and `gradient` each image's gradient for the layer's product with it.
    """
    layer, images = unit.layer, len(x)
    if unit.is_convolution:
        patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        patches = patches.view(images, unit.groups, -1, patches.shape[2])
        gradient = gradient.reshape(images, unit.groups, -1, patches.shape[3])
    else:
        patches, gradient = (part.reshape(images, -1, part.shape[-1]).mT for part in (x, gradient))
    in_force = (gradient @ patches.mT).reshape(images, *unit.weight.shape)
    if unit.gate is None:
        return in_force
    dense = unit.weight.detach().requires_grad_(True)
    with torch.enable_grad():  # 1, or 0 where a mask that does not move has cut
        passed = torch.autograd.grad(unit.gate.weight(dense).sum(), dense)[0]
    return in_force * passed
