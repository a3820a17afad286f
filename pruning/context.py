"""This file holds what a criterion may ask for beyond the weights, computed when first asked for, without leaving a trace."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property

import torch
from torch import Tensor

from models import Network, Unit
from pruning.probes import maps_of, watch
from settings.registry import CRITERIA
from tasks.classification import Classification
from tasks.task import Task

Scores = dict[str, Tensor]


class Context:
    """One scoring's surroundings.

    `groups` is the granularity's view of a weight, (groups..., weights of a group); `sample` yields batches of
    normalised images and labels, always the same ones; `seed` is that of the random criterion; `choose` maps scores to
    what would be kept of every unit now.
    """

    def __init__(
        self,
        network: Network,
        groups: Callable[[Tensor], Tensor],
        sample: Callable[[], Iterable],
        seed: int,
        choose: Callable[[Scores], Scores] | None = None,
        task: type[Task] | Task = Classification,
    ):
        self.network, self.groups, self.sample, self.seed, self.choose = network, groups, sample, seed, choose
        self.task = task

    @cached_property
    def generator(self) -> torch.Generator:
        """A generator of this scoring's own, on the CPU: the same numbers for the same seed on every device."""
        return torch.Generator().manual_seed(self.seed)

    def score(self, criterion: str, units: dict[str, Unit]) -> Scores:
        """Another criterion's scores."""
        return lift(CRITERIA.get(criterion))(units, self)

    def gradient(self, unit: Unit) -> Tensor:
        """The cross-entropy's gradient for the unit's dense weight, of its shape: the mean over the sample.

        With batch statistics, as in training: a network that was just initialised has no others.
        """
        return self._gradients[unit]

    @cached_property
    def _gradients(self) -> dict[Unit, Tensor]:
        return self._weight_gradients(training=True)

    @cached_property
    def gradients_as_tested(self) -> dict[Unit, Tensor]:
        """As `gradient`, in evaluation: whatever the size of the batches, the same."""
        return self._weight_gradients(training=False)

    def _weight_gradients(self, training: bool) -> dict[Unit, Tensor]:
        units = list(self.network.all_units.values())
        weights = [unit.weight for unit in units]
        frozen = [weight for weight in weights if not weight.requires_grad]
        sums, images_seen = [torch.zeros_like(weight) for weight in weights], 0
        with self._unchanged(training), torch.enable_grad():
            try:
                for weight in frozen:
                    weight.requires_grad_(True)
                for images, labels in self.sample():
                    loss = self.task.image_losses(self.network(images), labels).sum()
                    for total, gradient in zip(sums, torch.autograd.grad(loss, weights), strict=True):
                        total += gradient
                    images_seen += len(labels)
            finally:
                for weight in frozen:
                    weight.requires_grad_(False)
        return {unit: total / images_seen for unit, total in zip(units, sums, strict=True)}

    @torch.no_grad()
    def responses(self, units: dict[str, Unit], statistic: Callable[[Tensor], Tensor]) -> Scores:
        """A statistic of every unit's feature maps: (images, filters, height, width) -> (images, ...), all images of the sample.

        In evaluation. The maps are the unit's output behind its ReLU and before its own mask; of a unit without a ReLU,
        which writes into a residual stream, they are the stream's behind the joint's ReLU.
        """
        found, joints = {name: [] for name in units}, self._joints()
        with self._unchanged(training=False), ExitStack() as watched:
            for name, unit in units.items():

                def see(x: Tensor, name=name, filters=unit.filters) -> None:
                    found[name].append(statistic(maps_of(x)[:, :filters]))

                if unit.activation or name not in joints:
                    watched.enter_context(watch(unit, see))
                else:
                    joint = self.network.get_submodule(joints[name])
                    watched.callback(joint.register_forward_hook(lambda _, __, y, see=see: see(y)).remove)
            for images, _ in self.sample():
                self.network(images)
        return {name: torch.cat(pieces) for name, pieces in found.items()}

    def sensitivities(self, units: dict[str, Unit], statistic: Callable[[Tensor, Tensor], Tensor]) -> Scores:
        """A statistic of every unit's output and of its image's loss's gradient for it, both (images, filters, height, width).

        In evaluation, at the unit's own output, before its mask. Returns (images, ...), all images of the sample.
        """
        found, outputs = {name: [] for name in units}, {}
        with self._unchanged(training=False), torch.enable_grad(), ExitStack() as watched:
            for name, unit in units.items():
                watched.enter_context(watch(unit, lambda x, name=name: outputs.update({name: x}), differentiable=True))
            for images, labels in self.sample():
                loss = self.task.image_losses(self.network(images), labels).sum()
                gradients = torch.autograd.grad(loss, [outputs[name] for name in units])
                for name, gradient in zip(units, gradients, strict=True):
                    found[name].append(statistic(maps_of(outputs[name].detach()), maps_of(gradient)))
        return {name: torch.cat(pieces) for name, pieces in found.items()}

    @cached_property
    def shapes(self) -> dict[str, tuple[torch.Size, torch.Size]]:
        """Of every unit the shapes of its input and its output for one image of the sample: (channels, height, width)."""
        shapes, hooks = {}, []
        for name, unit in self.network.all_units.items():
            hooks.append(
                unit.register_forward_hook(lambda _, x, y, name=name: shapes.update({name: (x[0].shape[1:], y.shape[1:])}))
            )
        with self._unchanged(training=False), torch.no_grad():
            self.network(next(iter(self.sample()))[0][:1])
        for hook in hooks:
            hook.remove()
        return shapes

    @torch.no_grad()
    def measure(self, batches: int | None = None, training: bool = False) -> tuple[float, float]:
        """Mean loss of an image, and the task's metric as a fraction, of the network as it now stands.

        In evaluation, or with batch statistics: those of the network that masks leave, where the running ones are of another.
        """
        loss = seen = 0
        meter = self.task.meter(next(self.network.parameters()).device)
        with self._unchanged(training):
            for number, (images, labels) in enumerate(self.sample()):
                if number == batches:
                    break
                outputs = self.network(images)
                losses = self.task.image_losses(outputs, labels)
                meter.add(outputs, labels, {"loss": losses.mean()})
                loss, seen = loss + float(losses.sum()), seen + len(losses)
        return loss / seen, meter.read()[self.task.metric] / 100

    @contextmanager
    def under(self, keep: Scores) -> Iterator[None]:
        """Other masks for as long as this lasts: {unit: what to keep}."""
        gates = {name: self.network.get_submodule(name).gate for name in keep}
        before = {name: gate.decide() for name, gate in gates.items()}
        try:
            for name, gate in gates.items():
                gate.set(keep[name].to(before[name].device))
            yield
        finally:
            for name, gate in gates.items():
                gate.set(before[name])

    @contextmanager
    def _unchanged(self, training: bool) -> Iterator[None]:
        """Mode and statistics are afterwards as they were."""
        network = self.network
        before, statistics = network.training, {name: b.clone() for name, b in network.named_buffers()}
        try:
            network.train(training)
            yield
        finally:
            network.train(before)
            for name, buffer in network.named_buffers():
                buffer.copy_(statistics[name])

    def _joints(self) -> dict[str, str]:
        """The joint whose output holds what a unit has written: its own, or for a stream's first writer the next one."""
        found, waiting = {}, {}
        for link in self.network.links:
            if link.joint is None:
                waiting[link.target] = link.unit
            else:
                found[link.unit] = link.joint
                if first := waiting.pop(link.target, None):
                    found[first] = link.joint
        return found


def singular_values(maps: Tensor) -> Tensor:
    """Of maps (images, filters, height, width), from their Gram matrices in float64: (images, filters, the smaller side).

    Their squares are then exact to 2^-52 of the largest, so that values of 2^-26 of the largest are told from 0.
    """
    maps = maps.double()
    rows = maps if maps.shape[2] <= maps.shape[3] else maps.mT
    return torch.linalg.eigvalsh(rows @ rows.mT).clamp_min(0).sqrt()


def lift(criterion):
    """A criterion for all units from one for a single unit, told apart by the name of the first parameter."""
    if next(iter(inspect.signature(criterion).parameters)) == "units":
        return criterion
    return lambda units, context: {name: criterion(unit, context) for name, unit in units.items()}
