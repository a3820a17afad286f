"""This criterion, NISP, keeps the filters that the network's final responses depend on."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models import Unit
from pruning.context import Context
from pruning.probes import maps_of


def NISP(
    units: Annotated[dict[str, Unit], "filters only"],
    context: Annotated[Context, "reads images"],
    *,
    last: Literal["infFS", "equal"] = "infFS",
    rate: Annotated[float, "at most 1"] = 0.0,
) -> dict[str, Tensor]:
    """Neuron importance propagated back from the final responses (Yu et al., 2018, arXiv 1711.05908): s_(k-1) = |W_k|^T s_k.

    The channels that the classifier reads are scored by infinite feature selection on their responses (last='infFS', alpha
    0.5), or all alike. Their scores go back through the wiring with the absolute weights: convolutions are transposed,
    pooling spreads a score evenly, batch norm and ReLU are the identity, and the scores of several readers are added up.
    `rate` is the fraction of each layer, those with the lowest scores, that passes none on, as cut filters do.
    """
    network, shapes = context.network, context.shapes
    all_units, widths = network.all_units, network.widths()
    maps: dict[str, Tensor] = {}
    scores = {}
    for link in reversed(network.links):
        if link.target in network.outputs:
            _add(maps, link.source, _final(context, link, last))
            continue
        if link.target not in maps:
            continue  # nothing reads it
        if link.unit is None:
            _add(maps, link.source, maps[link.target][: widths[link.source]])
            continue
        unit = all_units[link.unit]
        size, inputs = shapes[link.unit][1], shapes[link.unit][0]
        score = _spread(maps[link.target][: unit.filters], size)
        total = score.flatten(1).sum(1)
        scores[link.unit] = total
        score = score * _going_on(unit, total, rate).view(-1, *[1] * (score.dim() - 1))
        weight = unit.weight_in_force.detach().abs().to(score.dtype)
        if unit.is_convolution:
            layer = unit.layer
            geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
            back = torch.nn.grad.conv2d_input((1, *inputs), weight, score.unsqueeze(0), *geometry)[0]
        else:
            back = (weight.T @ score.flatten())[:, None, None]
        if link.source != "input":
            _add(maps, link.source, back)
    nothing = {name: torch.zeros(unit.filters, dtype=torch.float64, device=unit.weight.device) for name, unit in units.items()}
    return {name: scores.get(name, nothing[name]) for name in units}


def _add(maps: dict[str, Tensor], node: str, score: Tensor) -> None:
    """Add a reader's scores of a node's channels to those of its other readers, at the larger size of the two."""
    total = maps.get(node)
    if total is None:
        maps[node] = score
        return
    size = max(total.shape[1:], score.shape[1:])
    channels = max(len(total), len(score))
    total, score = (F.pad(_spread(part, (len(part), *size)), (0, 0, 0, 0, 0, channels - len(part))) for part in (total, score))
    maps[node] = total + score


def _spread(score: Tensor, shape) -> Tensor:
    """Spread a score map, (channels, height, width), evenly over the larger map that was pooled into it; its sum stays."""
    size = tuple(shape[1:]) or (1, 1)
    if score.shape[1:] == size:
        return score
    larger = F.interpolate(score.unsqueeze(0), size=size, mode="nearest-exact")[0]
    return larger * (score.shape[1] * score.shape[2] / (size[0] * size[1]))


def _going_on(unit: Unit, total: Tensor, rate: float) -> Tensor:
    """Return 1 for the filters whose scores are propagated and 0 for the others, (filters,)."""
    going = unit.alive(total.dtype)
    ranked = total.masked_fill(going == 0, -1).argsort(stable=True)
    going[ranked[: int(rate * len(ranked) + 1e-9)]] = 0
    return going


def _final(context: Context, link, last: str) -> Tensor:
    """Return the scores of the channels that an output's unit reads, (channels, 1, 1), from the means of their maps."""
    if link.unit is None:
        raise ValueError(f"NISP needs a layer that makes the output '{link.target}', which is a copy of '{link.source}'")
    reader = context.network.get_submodule(link.unit)
    if last == "equal":
        channels = reader.weight.shape[1] * reader.groups
        return torch.ones(channels, 1, 1, dtype=torch.float64, device=reader.weight.device)
    responses = []
    hook = reader.register_forward_pre_hook(lambda _, x: responses.append(maps_of(x[0].detach().double()).mean((2, 3))))
    try:
        context.measure()
    finally:
        hook.remove()
    return _infinite_feature_selection(torch.cat(responses))[:, None, None]


def _rank(values: Tensor) -> Tensor:
    """Return ranks along the first dimension, equal values with their average rank, as Spearman's correlation takes them."""
    ordered = values.sort(0).values
    columns = (values.T.contiguous(), ordered.T.contiguous())
    below = torch.searchsorted(columns[1], columns[0], right=False)
    up_to = torch.searchsorted(columns[1], columns[0], right=True)
    return ((below + up_to - 1).double() / 2).T


def _infinite_feature_selection(responses: Tensor, alpha: float = 0.5) -> Tensor:
    """Roffo et al., 2015: A_ij = alpha max(sd_i, sd_j) + (1 - alpha) (1 - |Spearman_ij|), from (images, channels)."""
    deviation = responses.std(0)
    ranks = _rank(responses)
    ranks = ranks - ranks.mean(0)
    lengths = ranks.norm(dim=0)
    related = (ranks.T @ ranks / lengths.clamp_min(1e-30) / lengths.clamp_min(1e-30).unsqueeze(1)).abs()
    together = torch.maximum(deviation, deviation.unsqueeze(1))
    return _all_paths(alpha * together + (1 - alpha) * (1 - related))


def _all_paths(graph: Tensor) -> Tensor:
    """Return the row sums of (I - r A)^-1 - I, where r is 0.9 / the spectral radius of A."""
    factor = 0.9 / torch.linalg.eigvalsh(graph).abs().max().clamp_min(1e-30)
    identity = torch.eye(len(graph), dtype=graph.dtype, device=graph.device)
    return (torch.linalg.inv(identity - factor * graph) - identity).sum(1)
