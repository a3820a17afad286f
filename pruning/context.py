"""This file holds what a criterion may ask for beyond the weights. It is computed when first asked for, and leaves no trace."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property

import torch
from torch import Tensor

from models import Network, Unit
from pruning.derivatives import hessian_gradients, mean_gradients, synaptic_flow, unchanged
from pruning.probes import Probe, ProductProbe, backwards, maps_of, watch, weight_gradients
from settings.errors import Failed
from settings.registry import CRITERIA
from tasks.classification import Classification
from tasks.task import Task

Scores = dict[str, Tensor]


class Context:
    """A context is what surrounds one scoring of a network.

    `groups` is the granularity's view of a weight, (groups..., weights of a group); `sample` yields batches of
    normalised images and labels, always the same ones; `seed` is that of the random criterion; `choose` maps scores to
    the masks that they would give now, a bool tensor for each unit. With `own_maps` a unit that writes a residual stream is
    scored at its own output, as if it alone were added, so that it has a score of its own where it is cut. A criterion
    may write plain values into `record`, such as a threshold that it has found.
    """

    def __init__(
        self,
        network: Network,
        groups: Callable[[Tensor], Tensor],
        sample: Callable[[], Iterable],
        seed: int,
        choose: Callable[[Scores], Scores] | None = None,
        task: type[Task] | Task = Classification,
        own_maps: bool = False,
    ):
        self.network, self.groups, self.sample, self.seed, self.choose = network, groups, sample, seed, choose
        self.task, self.own_maps, self.record, self._made = task, own_maps, {}, {}

    @cached_property
    def generator(self) -> torch.Generator:
        """A generator that belongs to this scoring. It is on the CPU, so that a seed gives the same numbers on every device."""
        return torch.Generator().manual_seed(self.seed)

    def score(self, criterion: str, units: dict[str, Unit]) -> Scores:
        """Return the scores that another criterion, by its name with options, gives these units."""
        return lift(CRITERIA.get(criterion))(units, self)

    def gradient(self, unit: Unit, per_class: int = 0) -> Tensor:
        """Return the gradient of a mean loss for the unit's dense weight, of the weight's shape.

        The mean is over the sample, or over `per_class` images of each class. It is taken with batch statistics, as in
        training: a network that was just initialised has no others.
        """
        return self._once(f"gradients {per_class}", lambda: self._weight_gradients(training=True, per_class=per_class))[unit]

    @cached_property
    def gradients_as_tested(self) -> dict[Unit, Tensor]:
        """{unit: the gradient over the sample, but in evaluation}, which does not depend on the size of the batches."""
        return self._weight_gradients(training=False)

    def hessian_product(self, unit: Unit, per_class: int, temperature: float) -> Tensor:
        """Return the unit's part of H g, as `hessian_gradients` says; images and mode are those of `gradient`."""
        key = f"Hessian products {per_class} {temperature}"
        return self._once(key, lambda: self._weight_gradients(True, per_class, hessian_gradients, temperature))[unit]

    def synaptic_flow(self, unit: Unit) -> Tensor:
        """Return |w dR/dw| of the unit's weight in force; see `derivatives.synaptic_flow`. Failed where R is not finite."""
        total, scores = self._once("flow", lambda: synaptic_flow(self.network, self.inputs))
        if not total.isfinite():
            raise Failed(f"SynFlow: the sum of the outputs is {float(total)} in float64: the network is too deep or too wide")
        return next(scores[name] for name, other in self.network.all_units.items() if other is unit)

    def _once(self, key: str, make: Callable):
        """Return what `make` makes, which is called the first time that this key is asked for."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _weight_gradients(self, training: bool, per_class: int = 0, of: Callable = mean_gradients, *rest) -> dict[Unit, Tensor]:
        units = list(self.network.all_units.values())
        weights = [unit.weight for unit in units]
        batches = self.sample()
        if per_class:
            whole = isinstance(self.task, Task)  # a criterion may be asked without the data
            classes = self.task.outputs if whole else self.network.widths()[self.network.outputs[0]]
            batches = self.task.of_each_class(batches, per_class, classes)
        with unchanged(self.network, training), self._joints_pass_gradients():
            values = of(self.network, weights, batches, self.task.image_losses, *rest)
        return dict(zip(units, values, strict=True))

    @torch.no_grad()
    def responses(self, units: dict[str, Unit], statistic: Callable[[Tensor], Tensor]) -> Scores:
        """Return a statistic of every unit's feature maps, for all images of the sample, in evaluation.

        `statistic` maps (images, filters, height, width) to (images, ...). The maps are the unit's output behind its ReLU
        and before its own mask. A unit that writes into a residual stream has no ReLU: its maps are the stream's behind
        the joint's ReLU, if that has one, or, with `own_maps`, the same of its own output.
        """
        statistics, joints = {name: [] for name in units}, self._joints()
        with unchanged(self.network, training=False), ExitStack() as watched:
            for name, unit in units.items():

                def see(x: Tensor, name=name, filters=unit.filters) -> None:
                    statistics[name].append(statistic(maps_of(x)[:, :filters]))

                if unit.activation or name not in joints:
                    watched.enter_context(watch(unit, see))
                    continue
                joint = self.network.get_submodule(joints[name])
                if self.own_maps:
                    watched.enter_context(watch(unit, lambda x, see=see, joint=joint: see(joint.activated(x))))
                else:
                    watched.callback(joint.register_forward_hook(lambda _, __, y, see=see: see(y)).remove)
            for images, _ in self.sample():
                self.network(images)
        return {name: torch.cat(batches) for name, batches in statistics.items()}

    def sensitivities(self, units: dict[str, Unit], statistic: Callable[[Tensor, Tensor], Tensor]) -> Scores:
        """Return a statistic of every unit's output and its gradient, for all images of the sample, in evaluation.

        `statistic` maps the unit's own output, before its mask, and the gradient of each image's loss for that output,
        both (images, filters, height, width), to rows: one for each image, or one for each batch.
        """
        statistics = {name: [] for name in units}

        def see(name: str, _, output: Tensor, gradient: Tensor) -> None:
            statistics[name].append(statistic(maps_of(output), maps_of(gradient)))

        self._backwards(units, Probe, see)
        return {name: torch.cat(batches) for name, batches in statistics.items()}

    def image_gradients(self, units: dict[str, Unit], see: Callable[[str, Tensor], None], at_once: int = 32) -> None:
        """Call `see(name, gradients)` with each image's own gradient for every unit's dense weight, in evaluation.

        `gradients` are (images, *weight.shape), of the whole sample in turn, `at_once` images at a time.
        """

        def seen(name: str, x: Tensor, _, gradient: Tensor) -> None:
            see(name, weight_gradients(units[name], x, gradient))

        self._backwards(units, ProductProbe, seen, at_once)

    def _backwards(self, units: dict[str, Unit], probe: type[Probe], see: Callable, at_once: int | None = None) -> None:
        """Look at units and at the gradients of image losses there, in evaluation; see `probes.backwards`."""
        with unchanged(self.network, training=False), self._joints_pass_gradients():
            backwards(self.network, units, probe, see, self.sample(), self.task.image_losses, at_once)

    @property
    def inputs(self) -> tuple[int, ...]:
        """The shape of an input, (channels, height, width)."""
        return tuple(next(iter(self.sample()))[0].shape[1:])

    @cached_property
    def images(self) -> int:
        """The number of images in the sample."""
        return sum(len(targets) for _, targets in self.sample())

    @cached_property
    def shapes(self) -> dict[str, tuple[torch.Size, torch.Size]]:
        """{unit: the shapes of its input and of its output for one image}, each (channels, height, width)."""
        shapes, hooks = {}, []
        for name, unit in self.network.all_units.items():
            hooks.append(
                unit.register_forward_hook(lambda _, x, y, name=name: shapes.update({name: (x[0].shape[1:], y.shape[1:])}))
            )
        with unchanged(self.network, training=False), torch.no_grad():
            self.network(next(iter(self.sample()))[0][:1])
        for hook in hooks:
            hook.remove()
        return shapes

    @torch.no_grad()
    def measure(self, batches: int | None = None, training: bool = False) -> tuple[float, float]:
        """Return the mean loss of an image and the task's metric as a fraction, of the network under its masks of now.

        It reads the first `batches` of the sample, or all. In evaluation, or with `training` by the statistics of each
        batch: under masks that were just changed, the running statistics are those of a different network.
        """
        loss = seen = 0
        meter = self.task.meter(next(self.network.parameters()).device)
        with unchanged(self.network, training):
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
        """Within this block the masks are those of `keep`, {unit: bool tensor, True where kept}."""
        gates = {name: self.network.get_submodule(name).gate for name in keep}
        masks = {name: gate.decide() for name, gate in gates.items()}
        try:
            for name, gate in gates.items():
                gate.set(keep[name].to(masks[name].device))
            yield
        finally:
            for name, gate in gates.items():
                gate.set(masks[name])

    @contextmanager
    def _joints_pass_gradients(self) -> Iterator[None]:
        """Within this block joints take their derivative at 0 from the right, where `own_maps` asks for it."""
        joints = list(self.network.joints.values())
        switches = [joint.from_the_right for joint in joints]
        try:
            for joint in joints:
                joint.from_the_right |= self.own_maps
            yield
        finally:
            for joint, switch in zip(joints, switches, strict=True):
                joint.from_the_right = switch

    def _joints(self) -> dict[str, str]:
        """Return {unit: the joint behind which its channels are read}: its own, or of a stream's first writer the next one."""
        joint_of, first_writers = {}, {}
        for link in self.network.links:
            if link.joint is None:
                first_writers[link.target] = link.unit
            else:
                joint_of[link.unit] = link.joint
                if first := first_writers.pop(link.target, None):
                    joint_of[first] = link.joint
        return joint_of


def lift(criterion):
    """Return a criterion for all units, made from one for a single unit, whose first parameter is not named `units`."""
    if next(iter(inspect.signature(criterion).parameters)) == "units":
        return criterion
    return lambda units, context: {name: criterion(unit, context) for name, unit in units.items()}
