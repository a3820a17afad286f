"""This file cuts a network layer by layer, in the order of its wiring, and repairs the layers that read what is left.

What is chosen and with which weights it is read is for a method in reconstruction/ to say. Nothing here knows an architecture.
"""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from models import Link, Network
from models.numerics import without_tf32
from pruning.accounting import positions
from pruning.layer_order import Layer, layers_for
from pruning.readers import Reader, folded, put, values_at, windows
from settings.registry import RECONSTRUCTIONS, parse_call


@dataclass
class Problem:
    """A problem is what a method is asked about one layer: which channels stay, and by which weights they are read.

    `keep` is the criterion's choice, (channels,) bool. Where the layer is `chosen` from, the method may keep others instead,
    as many of them. `draw(rows, images)` returns what each reader sees at `rows` places, drawn from at least so many
    training images; from more, where an image has too few places. `incoming()` returns by which weights and bias each
    channel is written, batch norm folded in, (channels, weights + 1), and `outgoing()` by which weights each reader now
    reads them, (filters, channels, patch) each; all are float64.
    """

    keep: Tensor
    chosen: bool
    draw: Callable[[int, int], list[Reader]]
    incoming: Callable[[], Tensor]
    outgoing: Callable[[], list[Tensor]]


class _SeenAll(Exception):
    """All that was to be seen of a pass through the network has been seen."""


def check(network: Network, method: str, whole: Collection[str] = ()) -> None:
    """Raise ValueError if this method, with its options, draws too few rows to solve for what it changes in this network.

    Layers whose units are all in `whole` are not cut, and so not repaired.
    """
    known = RECONSTRUCTIONS.entry(method).options
    options = {name: option.default for name, option in known.items()} | parse_call(method)[1]
    for layer in layers_for(network, method, whole):
        for name in layer.readers:
            weights = network.get_submodule(name).weight[0].numel()
            if "rows" in options and options["rows"] < weights:
                raise ValueError(f"rows={options['rows']} are too few to solve for the {weights} weights of a filter of '{name}'")


class Repair:
    """A repair goes through the layers of a network that has filter masks, and puts the masks and the new weights in force.

    `original` is the network before the cut, without masks; `keep` is the criterion's choice, {unit: (filters,) bool};
    `method` names the reconstruction, with its options. `sample(images)` yields batches of at least so many training images,
    or of all that there are, as (inputs, targets). Places are drawn by `seed`; `image_size` is that of the inputs.
    """

    def __init__(
        self,
        network: Network,
        original: Network,
        keep: dict[str, Tensor],
        method: str,
        sample: Callable[[int], Iterator],
        *,
        seed: int = 0,
        image_size: int = 32,
    ):
        self.network, self.original, self.keep, self.sample, self.seed = network, original.eval(), keep, sample, seed
        self.method = RECONSTRUCTIONS.get(method)
        self.layers = layers_for(network, method, network.units.keys() - keep.keys())
        self.pixels = positions(network, image_size)
        self.links: dict[str, Link] = {link.unit: link for link in network.links if link.unit is not None}

    @torch.no_grad()
    def carry_out(self, layer: Layer) -> dict:
        """Cut a layer and repair its readers; the layers before it must have been cut.

        Returns plain values: its name, the channels kept of how many, the rows, the seconds, and the relative error
        ||wanted - product|| / ||wanted|| on these rows with the old weights, once cut, and with the new ones.
        """
        began, mode = time.perf_counter(), self.network.training
        self.network.eval()
        for name in layer.fixed:
            self.network.get_submodule(name).gate.set(self.keep[name])
        channels = self.network.get_submodule(layer.readers[0]).weight.shape[1]
        keep = self.keep[layer.chosen[0]].cpu() if layer.chosen else torch.ones(channels, dtype=torch.bool)
        readers = [name for name in layer.readers if len(self._solved_for(name)[0])]
        drawn: dict[str, tuple[Reader, Tensor]] = {}

        def draw(rows: int, images: int) -> list[Reader]:
            drawn.update(self._draw(readers, self.layers.index(layer), rows, images))
            return [reader for reader, _ in drawn.values()]

        weights = []
        if readers:
            problem = Problem(keep, bool(layer.chosen), draw, partial(self._incoming, layer), partial(self._outgoing, readers))
            with without_tf32():
                keep, weights = self.method(problem)
        seen = [reader for reader, _ in drawn.values()]
        whole = sum(float(reader.wanted.square().sum()) for reader in seen)
        as_cut = sum(float((reader.wanted - reader.product(keep, reader.weight)).square().sum()) for reader in seen)
        lacking = 0.0
        for name in layer.chosen:
            self.network.get_submodule(name).gate.set(keep)
        for name, weight in zip(readers, weights, strict=True):
            if name not in drawn:  # the method looks at weights alone, and changes nothing else
                whole_weight = self.network.get_submodule(name).weight
                whole_weight.copy_(weight.reshape(whole_weight.shape))
                continue
            reader, before = drawn[name]
            changed = not torch.equal(weight, reader.weight)
            lacks, constant = reader.missing(keep, weight) if changed else (reader.wanted - reader.product(keep, weight), 0)
            lacking += float(lacks.square().sum())
            if changed:
                filters, scale = self._solved_for(name)
                left = self._scale(name)[filters] / scale
                unit, original = (network.get_submodule(name) for network in (self.network, self.original))
                put(unit, original, filters, weight, constant, left, reader.product(keep, weight), before)
        self.network.train(mode)
        kept = self.keep[layer.name] if not layer.chosen else keep
        return {
            "layer": layer.name,
            "readers": list(layer.readers),
            "kept": int(kept.sum()),
            "of": len(kept),
            "rows": min((len(reader.inputs) for reader in seen), default=None if weights else 0),
            "error_cut": (as_cut / whole) ** 0.5 if whole else None,
            "error": (lacking / whole) ** 0.5 if whole else None,
            "seconds": round(time.perf_counter() - began, 2),
        }

    def _incoming(self, layer: Layer) -> Tensor:
        """Return the weights and the bias that write each channel of a layer, batch norm folded in, (channels, weights + 1).

        Of units that are tied to one another each channel has those of all.
        """
        return torch.cat([folded(self.network.get_submodule(name)) for name in layer.chosen], 1)

    def _outgoing(self, names: list[str]) -> list[Tensor]:
        """Return by which weights each of these readers reads the channels now, (filters, channels, patch)."""
        weights = [self.network.get_submodule(name).weight.detach().double().cpu() for name in names]
        return [weight.flatten(2) if weight.dim() > 2 else weight[..., None] for weight in weights]

    def _solved_for(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the filters of a reader whose weights are solved for, and the scale that their products are compared at.

        A branch's last convolution is compared as it adds to its stream: by those filters that stay, behind batch norm's scale.
        """
        scale = self._scale(name)
        if self.links[name].joint is None:
            return torch.arange(len(scale)), torch.ones_like(scale)
        stays = scale != 0
        if name in self.keep:
            stays &= self.keep[name].cpu()
        return stays.nonzero().flatten(), scale[stays]

    def _scale(self, name: str) -> Tensor:
        """Return what a unit's batch norm multiplied each product by before the cut, (filters,); 1 without batch norm."""
        unit = self.original.get_submodule(name)
        if unit.norm is None:
            return torch.ones(unit.filters, dtype=torch.float64)
        return (unit.norm.weight / torch.sqrt(unit.norm.running_var + unit.norm.eps)).double().cpu()

    def _draw(self, names: list[str], number: int, rows: int, images: int) -> dict[str, tuple[Reader, Tensor]]:
        """Draw places, the same in both networks, and return what each reader sees there, and its product before the cut."""
        generator = torch.Generator().manual_seed(self.seed + number)
        each = {name: min(-(-rows // images), self.pixels[name]) for name in names}
        needed = {name: -(-rows // each[name]) for name in names}
        parts, seen = {name: [] for name in names}, 0
        for inputs, _ in self.sample(max(needed.values())):
            places = {
                name: torch.rand(min(len(inputs), needed[name] - seen), self.pixels[name], generator=generator)
                .argsort(1)[:, : each[name]]
                .to(inputs.device)
                for name in names
                if needed[name] > seen
            }
            now, before = (self._look(network, inputs, places) for network in (self.network, self.original))
            for name in places:
                parts[name].append((*now[name], *before[name]))
            seen += len(inputs)
            if seen >= max(needed.values()):
                break
        looks = {name: [torch.cat(part)[:rows] for part in zip(*parts[name], strict=True)] for name in names}
        return {name: self._reader(name, look, generator) for name, look in looks.items()}

    def _reader(self, name: str, seen: list[Tensor], generator: torch.Generator) -> tuple[Reader, Tensor]:
        """Return a reader, and its product before the cut, from what it and the stream that it adds to saw now and before.

        Y1 - Y1' + Y2 is wanted of a branch's last convolution: what it gave before the cut, Y2, and what its stream lacks.
        """
        inputs, stream, inputs_before, stream_before = seen
        filters, scale = self._solved_for(name)
        now, before = (network.get_submodule(name).weight.detach().double().cpu() for network in (self.network, self.original))
        weight, before = ((w[filters].flatten(2) if w.dim() > 2 else w[filters][..., None]) for w in (now, before))
        product = inputs_before.flatten(1) @ before.flatten(1).T
        wanted = product * scale + (stream_before - stream)[:, filters]
        drawn = torch.randint(len(filters), (len(inputs),), generator=generator)
        unit = self.network.get_submodule(name)
        constant = unit.norm is not None or unit.layer.bias is not None
        return Reader(weight * scale[:, None, None], inputs, wanted, drawn, constant), product

    def _look(self, network: Network, inputs: Tensor, places: dict[str, Tensor]) -> dict[str, list[Tensor]]:
        """Return what readers read in a network at these places, and the stream there that they add to, or zeros."""
        read: dict[str, Tensor] = {}
        streams: dict[str, Tensor] = {}
        joints = {name: joint for name in places if (joint := self.links[name].joint) is not None}
        with ExitStack() as hooks:
            for name, where in places.items():
                unit = network.get_submodule(name)

                def see(unit, arguments, name=name, where=where) -> None:
                    read[name] = windows(unit.layer, arguments[0], where).double().cpu()
                    stop_when_seen()

                def see_stream(_, arguments, name=name, where=where, filters=unit.filters) -> None:
                    streams[name] = values_at(arguments[1], where, filters).double().cpu()
                    stop_when_seen()

                hooks.callback(unit.register_forward_pre_hook(see).remove)
                if name in joints:
                    hooks.callback(network.get_submodule(joints[name]).register_forward_pre_hook(see_stream).remove)

            def stop_when_seen() -> None:
                if len(read) == len(places) and len(streams) == len(joints):
                    raise _SeenAll

            with suppress(_SeenAll):
                network(inputs)
        filters = {name: network.get_submodule(name).filters for name in places}
        return {name: [read[name], streams.get(name, read[name].new_zeros(len(read[name]), filters[name]))] for name in places}
