"""This file gives networks the weights of the same networks from elsewhere: a state dict goes in, one of ours comes out.

Known are torchvision's models, its SSD too, and files in the manner of akamaster's and kuangliu's CIFAR networks, by whatever
names: what counts is their order. A state dict is read as convolutions and linear layers, each with the batch norm that stands
beside it. Those in shortcuts, which their names say, are matched with the projections here, and all others with the units in
the order of execution. Every tensor must be used, and have the shape that is wanted; nothing is guessed from shapes alone.
"""

import re
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor, nn

from models.layers import initialise
from models.layouts import from_torchvision, is_torchvisions
from models.network import Network
from models.shapes import told
from settings.calls import parse_call
from settings.registry import NETWORKS
from settings.schema import Unfit

WRAPPERS = ("state_dict", "model", "net", "model_state_dict")
PREFIXES = ("module.", "_orig_mod.")  # of torch's DataParallel and torch.compile
SHORTCUTS = {"downsample", "shortcut", "projection", "skip"}
NORM = ("weight", "bias", "running_mean", "running_var")
# networks whose shortcuts have no weights, by the path of a block's first convolution: where zero channels are put
PADDED = {r"layer[1-3]\.\d+\.conv1": "both sides", r"stage_[1-3]\.\d+\.conv_a": "behind"}
# torchvision's names of networks here, and the options with which they are the same
TORCHVISION = {f"resnet{depth}": f"resnet{depth}" for depth in (18, 34, 50, 101, 152)}
TORCHVISION |= {"resnext50": "resnext50_32x4d", "mobilenetv2": "mobilenet_v2", "vgg16": "vgg16", "vgg19": "vgg19"}
TORCHVISION["ssd300_vgg16"] = "ssd300_vgg16"
SAME = {"stem": "imagenet", "head": "imagenet", "width": 1.0, "widen": 1.0, "maps": 6}


@dataclass
class Layer:
    """A convolution or linear layer from elsewhere, at `path`, and the batch norm at `norm`: {name here: tensor}."""

    path: str
    tensors: dict[str, Tensor]
    norm: str | None = None
    names: dict[str, str] = field(default_factory=dict)


def state_of(content) -> dict[str, Tensor]:
    """Return the state dict in what a torch file holds: itself, or under one of `WRAPPERS`, without prefixes of wrappers.

    Unfit where there is none.
    """
    if not isinstance(content, dict):
        raise Unfit(f"it holds a {type(content).__name__}, and no state dict")
    state = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), content)
    if not state or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise Unfit(f"it holds no state dict, by itself or under {', '.join(WRAPPERS)}")
    while prefix := next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    for name, value in state.items():
        dense = type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided and value.device.type == "cpu"
        if not dense or value.is_quantized or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise Unfit(f"'{name}' is no tensor of numbers that the file holds")
    return {name: value.detach() for name, value in state.items()}


def fitted(network: Network, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Return the state of a network with the values of a state dict from elsewhere, and the outputs of its own that it keeps.

    Those are the layers that tell classes apart, {name: filters in the file}, where the file's are for another number of
    classes. What only training counts, and rates of dropout, the network keeps where the file has none. Unfit, naming the
    first difference, for a state dict of another network.
    """
    own, named = network.state_dict(), state
    if not state.keys() <= own.keys():
        named = from_torchvision(state) if is_torchvisions(state) else _by_order(network, state)
    kept = _of_other_classes(network, named)
    its_own = tuple(f"{layer}.layer." for layer in kept)
    named = {name: value for name, value in named.items() if not name.startswith(its_own)}
    if extra := next((name for name in named if name not in own), None):
        raise Unfit(f"'{extra}', {told(named[extra])}, has no counterpart in the network")
    values = {}
    for name, value in own.items():
        if name not in named and not name.endswith(("num_batches_tracked", ".rate")) and not name.startswith(its_own):
            raise Unfit(f"it has nothing for '{name}', {told(value)}")
        given = named.get(name, value)
        if given.shape != value.shape:
            raise Unfit(f"'{name}' is {told(given)}, not {told(value)}")
        if value.is_floating_point() and not given.is_floating_point():
            raise Unfit(f"'{name}' is {told(given)}: weights are floating-point numbers")
        values[name] = given.to(value.dtype)
        if not values[name].isfinite().all():
            raise Unfit(f"'{name}', {told(given)}, holds numbers that are not finite")
    return values, kept


def _of_other_classes(network: Network, named: dict[str, Tensor]) -> dict[str, int]:
    """Return the layers that tell classes apart, {name: filters}, where these tensors are for another number of classes."""
    own, last, kept = network.state_dict(), network.last_units, {}
    naming = [link.unit for link in network.links if link.unit in last and link.target not in network.placing]
    for name in naming:
        (weight, bias), wanted = (named.get(f"{name}.layer.{part}") for part in ("weight", "bias")), own[f"{name}.layer.weight"]
        same_features = weight is not None and weight.shape[1:] == wanted.shape[1:] and len(weight) != len(wanted)
        if same_features and bias is not None and bias.shape == weight.shape[:1]:
            kept[name] = len(weight)
    ratios = {Fraction(filters, len(own[f"{name}.layer.weight"])) for name, filters in kept.items()}
    # outputs that differ by more than the number of classes are another network's
    return kept if len(kept) == len(naming) and len(ratios) == 1 else {}


def reshape_but_outputs(network: Network, shapes: dict) -> None:
    """Reshape a network as `Network.reshape` does, for shapes of other classes: it keeps its number of outputs, freshly drawn.

    Unfit, a ValueError, also where the layer of the outputs has been factorised.
    """
    last = network.last_units
    if gone := [name for name in last if name not in shapes["units"]]:
        raise Unfit(f"it knows other classes, and '{gone[0]}', which tells them apart, has been factorised")
    own = {name: [unit.filters, *shapes["units"][name][1:]] for name, unit in last.items()}
    network.reshape(shapes | {"units": shapes["units"] | own})
    for unit in last.values():
        initialise(unit)


def torchvision_name(arch: str) -> str | None:
    """Return torchvision's name of the network that --arch names, or None where torchvision has not the same."""
    name, options = parse_call(arch)
    chosen = {key: option.default for key, option in NETWORKS.entry(arch).options.items()} | options
    if name not in TORCHVISION or any(chosen.get(key, value) != value for key, value in SAME.items()):
        return None
    if name.startswith("ssd"):
        return None if chosen["norm"] else TORCHVISION[name]
    return TORCHVISION[name] + ("_bn" if chosen.get("head") and chosen["norm"] else "")


def _by_order(network: Network, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the values of a state dict under the names that they have in this network. Unfit as `fitted`."""
    layers = _layers(state)
    shortcuts = [layer for layer in layers if SHORTCUTS & {*layer.path.split(".")}]
    others = [layer for layer in layers if layer not in shortcuts]
    units = list(network.all_units)
    projections = [name for name in units if SHORTCUTS & {*name.split(".")}]
    mains = [name for name in units if name not in projections]
    values = {}
    for names, theirs in ((mains, others), (projections, shortcuts)):
        for name, layer in zip(names, theirs, strict=False):
            values |= _matched(network, name, layer)
        if len(theirs) > len(names):
            extra = theirs[len(names)]
            raise Unfit(f"'{extra.path}.weight', {told(extra.tensors['layer.weight'])}, has no counterpart in the network")
        if len(names) > len(theirs):
            missing = names[len(theirs)]
            raise Unfit(f"it has nothing for '{missing}', {told(network.get_submodule(missing).weight)}")
    return _reordered(network, values, others)


def _layers(state: dict[str, Tensor]) -> list[Layer]:
    """Return what a state dict holds, in its order. Unfit for a tensor that is no part of a layer, and for another order."""
    owners: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        owner, _, part = name.rpartition(".")
        owners.setdefault(owner, {})[part] = value
    _check_order(owners)
    layers: list[Layer] = []
    for owner, parts in owners.items():
        odd = next((part for part in parts if part not in (*NORM, "num_batches_tracked")), None)
        is_norm = "running_mean" in parts
        odd = odd or next((part for part in parts if not is_norm and part not in ("weight", "bias")), None)
        if odd is not None:
            raise Unfit(f"'{owner}.{odd}'".replace("'.", "'") + " is no part of a convolution, a linear layer or a batch norm")
        for part in NORM if is_norm else ("weight",):
            if part not in parts:
                raise Unfit(f"it has nothing for '{owner}.{part}', and has '{owner}.{next(iter(parts))}'")
        if not is_norm:
            names = {f"layer.{part}": f"{owner}.{part}".strip(".") for part in parts}
            layers.append(Layer(owner, {f"layer.{part}": value for part, value in parts.items()}, names=names))
            continue
        last = layers[-1] if layers else None
        if last is None or last.norm is not None or last.path.rpartition(".")[0] != owner.rpartition(".")[0]:
            raise Unfit(f"'{owner}' is a batch norm that stands behind no convolution or linear layer")
        last.norm = owner
        last.tensors |= {f"norm.{part}": value for part, value in parts.items()}
        last.names |= {f"norm.{part}": f"{owner}.{part}" for part in parts}
    return layers


def _check_order(paths) -> None:
    """Raise Unfit unless numbers in these paths rise, as they do in the order in which a network's layers are made."""
    last: dict[str, tuple[int, str]] = {}
    for path in paths:
        for match in re.finditer(r"\d+", path):
            before, number = path[: match.start()], int(match[0])
            if number < last.get(before, (0, ""))[0]:
                raise Unfit(f"'{last[before][1]}' stands before '{path}': the tensors are not in the network's order")
            last[before] = (number, path)


def _matched(network: Network, name: str, layer: Layer) -> dict[str, Tensor]:
    """Return the tensors of a layer from elsewhere under the names of the unit `name`. Unfit where they differ."""
    own, tensors = network.get_submodule(name), dict(layer.tensors)
    wanted = {part: value for part, value in own.state_dict().items() if part.startswith(("layer.", "norm."))}
    if own.is_linear and own.is_convolution and tensors["layer.weight"].dim() == 2:  # written out over the pixels of a map
        flat = (own.filters, wanted["layer.weight"][0].numel())
        if tensors["layer.weight"].shape == flat:
            tensors["layer.weight"] = tensors["layer.weight"].view_as(wanted["layer.weight"])
    bias = tensors.get("layer.bias")
    if bias is not None and "layer.bias" not in wanted and layer.norm is not None and bias.shape == (own.filters,):
        # batch norm takes its mean from a sum with this bias
        tensors["norm.running_mean"] = tensors["norm.running_mean"] - tensors.pop("layer.bias")
    outputs = name in network.last_units
    for part, value in wanted.items():
        if part not in tensors and not part.endswith("num_batches_tracked"):
            raise Unfit(f"'{layer.path}' has nothing for '{name}.{part}', {told(value)}")
        if part in tensors and tensors[part].shape[outputs:] != value.shape[outputs:]:  # classes may be others
            raise Unfit(f"'{layer.names[part]}' is {told(tensors[part])}, and '{name}.{part}' {told(value)}")
    for part, value in tensors.items():
        if part not in wanted:
            raise Unfit(f"'{layer.names[part]}', {told(value)}, has no counterpart in '{name}'")
    return {f"{name}.{part}": value for part, value in tensors.items()}


def _reordered(network: Network, values: dict[str, Tensor], layers: list[Layer]) -> dict[str, Tensor]:
    """Return the values with the channels of streams in the order that they have here, where shortcuts put zeros behind.

    Elsewhere half of the zero channels may stand before the others. Unfit where the paths do not say which of the two.
    """
    pads = [link for link in network.links if link.unit is None]
    if not pads:
        return values
    known = [where for pattern, where in PADDED.items() if re.fullmatch(pattern, layers[1].path)]
    if not known:
        raise Unfit(f"'{layers[1].path}' does not say where shortcuts without weights put zero channels: names are unknown")
    orders: dict[str, Tensor] = {}
    widths = network.widths()
    for link in pads if known == ["both sides"] else ():
        source, width = widths[link.source], widths[link.target]
        copied = orders.get(link.source, torch.arange(source)) + (width - source) // 2
        zeros = torch.ones(width, dtype=torch.bool)
        zeros[copied] = False
        orders[link.target] = torch.cat([copied, zeros.nonzero().flatten()])
    values = dict(values)
    for link in network.links:
        if link.unit is None:
            continue
        for name in [name for name in values if name.startswith(f"{link.unit}.") and values[name].dim()]:
            if link.target in orders:
                values[name] = values[name][orders[link.target]]
            if link.source in orders and name.endswith("layer.weight"):
                values[name] = values[name][:, orders[link.source]]
    return values
