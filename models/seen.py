"""This file watches a network: it keeps what a pass hands on at the ends of the network's stages, found by the wiring."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.network import Network


@dataclass
class Seen:
    """What is seen of a network while it looks at a batch.

    `logits` (images, classes); `maps`, each (images, channels, height, width), at the ends of stages that have a counterpart
    in the other network, in their order; `last`, the last feature map, or the embedding of a network without maps;
    `embedding` (images, features), what the classifier reads. `targets` (images,) are the labels, and `epoch`, a scalar, is
    the number of the epoch, counted from 1.
    """

    logits: Tensor
    maps: tuple[Tensor, ...] = ()
    last: Tensor | None = None
    embedding: Tensor | None = None
    targets: Tensor | None = None
    epoch: Tensor | None = None


@dataclass(frozen=True)
class End:
    """The end of a stage: the node of the wiring there, the module whose output it is, and the pixels of a side of its map."""

    node: str
    module: nn.Module
    side: int


@torch.no_grad()
def stage_ends(network: Network, image_size: int) -> list[End]:
    """Return the ends of a network's stages, in the order of execution; a stage is all convolutions with maps of one size.

    It ends at the last residual stream of that size or, without one, at the last convolution. A network of linear layers
    has none. The network is passed one black image in evaluation, and left as it was.
    """
    sides, hooks = {}, []
    for name, unit in network.all_units.items():
        hooks.append(unit.register_forward_hook(lambda _, __, y, name=name: sides.update({name: y.shape[2:3].numel()})))
    weight, modes = next(network.parameters()), {module: module.training for module in network.modules()}
    network.eval()(weight.new_zeros(1, network.input_channels, image_size, image_size))
    for module, training in modes.items():
        module.training = training
    for hook in hooks:
        hook.remove()
    ends: dict[int, End] = {}
    streams = {link.target for link in network.links if link.joint}
    for link in network.links:
        if link.unit is None or not network.get_submodule(link.unit).is_convolution or link.target in network.outputs:
            continue
        side, earlier = sides[link.unit], ends.get(sides[link.unit])
        if network.get_submodule(link.unit).is_linear or (earlier and earlier.node in streams and link.target not in streams):
            continue
        ends[side] = End(link.target, network.get_submodule(link.joint or link.unit), side)
    return list(ends.values())


def pairs(student: list[End], teacher: list[End]) -> list[tuple[End, End]]:
    """Pair the ends of two networks' stages: each of the network that has fewer with the one whose maps are nearest in size.

    ValueError where a network has no maps, or where two stages would have one counterpart.
    """
    if not student or not teacher:
        raise ValueError(f"the {'teacher' if student else 'student'} has no feature maps")
    fewer, more = sorted((student, teacher), key=len)
    nearest = [min(more, key=lambda end, side=each.side: max(end.side / side, side / end.side)) for each in fewer]
    if len({end.side for end in nearest}) < len(fewer):  # pooling may lie between two stages of one node
        sizes = [" ".join(str(end.side) for end in ends) for ends in (student, teacher)]
        raise ValueError(f"stages of maps of {sizes[0]} pixels cannot be paired with stages of {sizes[1]} pixels")
    paired = list(zip(fewer, nearest, strict=True))
    return paired if fewer is student else [(own, other) for other, own in paired]


class Watch:
    """A watch keeps what a network hands on at these ends, its last map and its embedding, for passes through `looking`.

    Other passes, such as those of an evaluation, keep nothing; nor is a copy of the network watched. ValueError for a network
    with several outputs.
    """

    def __init__(self, network: Network, ends: list[End], last: End | None):
        if len(network.outputs) > 1:
            raise ValueError("a network with several outputs is neither taught nor teaches")
        self.on, self.kept, self.names = False, {}, tuple(f"map {number}" for number in range(len(ends)))
        for name, end in [*zip(self.names, ends, strict=True), *([("last", last)] if last else [])]:
            end.module.register_forward_hook(_Tap(self, name))
        *_, classifier = network.last_units.values()
        classifier.register_forward_pre_hook(_Tap(self, "embedding"))

    def looking(self, forward: Callable) -> Callable:
        """Return the pass `forward` of the watched network, which now keeps what `take` returns."""

        def look(inputs: Tensor) -> Tensor:
            self.on = True
            outputs = forward(inputs)
            self.on = False
            return outputs

        return look

    def take(self, logits: Tensor) -> Seen:
        """Return what was kept of the last pass that was looked at, with the `logits` that it returned, and forget it."""
        kept, self.kept = self.kept, {}
        embedding = kept["embedding"].flatten(1)
        return Seen(logits, tuple(kept[name] for name in self.names), kept.get("last", embedding), embedding)


class _Tap:
    """A hook on a module: it shows a watch that is on the module's output or, before the pass, its input."""

    def __init__(self, watch: Watch, name: str):
        self.watch, self.name = watch, name

    def __call__(self, module: nn.Module, inputs: tuple, output: Tensor | None = None) -> None:
        if self.watch.on:
            self.watch.kept[self.name] = inputs[0] if output is None else output

    def __deepcopy__(self, memo) -> Callable:
        return _unwatched


def _unwatched(*_) -> None:
    """The hook that a copy of a watched network has."""
