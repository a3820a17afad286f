"""This file carries what pruning found over to another network (Liu et al., 2019, arXiv 1810.05270).

Guided pruning carries the widths of stages over, guided sparsification the patterns of their kernels. A stage is all
convolutions whose output has the same size. For widths, those that write the streams of a residual network are counted
apart from the others: pruning leaves them other ones, and all writers of a stream need one.
"""

import torch
from torch import Tensor

from models import Network
from pruning.accounting import positions
from pruning.channels import cannot_be_cut, in_groups

Fractions = dict[tuple[int, bool], float]
Patterns = dict[tuple[int, int, int], Tensor]


def stages(network: Network, image_size: int) -> dict[str, tuple[int, bool]]:
    """Return {convolution: (its stage, whether it writes a residual stream)}; stage 0 has the largest maps.

    The network must be whole. ValueError for a convolution in groups, whose width is not free.
    """
    for link in in_groups(network):
        raise ValueError(f"{cannot_be_cut(link.unit, network.get_submodule(link.unit))}: its width is not free")
    pixels, streams = positions(network, image_size), {link.target for link in network.links if link.joint}
    sizes = sorted({pixels[name] for name in network.prunable_convolutions}, reverse=True)
    return {
        link.unit: (sizes.index(pixels[link.unit]), link.target in streams)
        for link in network.links
        if link.unit in network.prunable_convolutions
    }


def fractions(network: Network, kept: dict[str, int], image_size: int) -> Fractions:
    """Return {stage: the mean over its layers of the fraction of filters kept}; the network is whole, `kept` counts by unit."""
    shares: dict[tuple[int, bool], list[float]] = {}
    for name, stage in stages(network, image_size).items():
        shares.setdefault(stage, []).append(kept[name] / network.get_submodule(name).filters)
    return {stage: sum(parts) / len(parts) for stage, parts in shares.items()}


def mean_of_runs(runs: list[Fractions] | list[Patterns]) -> Fractions | Patterns:
    """Return the mean over pruned networks, each of which counts alike. ValueError where they have different stages."""
    if any(run.keys() != runs[0].keys() for run in runs):
        raise ValueError("the pruned networks have different stages")
    return {stage: sum(run[stage] for run in runs) / len(runs) for stage in runs[0]}


def narrowed(network: Network, shares: Fractions, image_size: int) -> dict:
    """Return the shapes, as `Network.reshape` takes them, of the whole network with these fractions of its filters.

    A layer's width is its fraction of the full one, to the nearest whole number and at least 1; halves are rounded up. The
    writers of a stream have one width. What is copied from one stream to another is no wider than what it is copied to, and
    filters that are tied to channels are as many as these. ValueError for a network that has other stages.
    """
    asked = stages(network, image_size)
    if {*asked.values()} != shares.keys():
        raise ValueError(f"{_words({*asked.values()})} are needed, and the pruned networks have {_words({*shares})}")
    units, nodes, shapes = network.all_units, {"input": network.input_channels}, {}
    for link in network.links:
        if link.unit is None or link.ties:
            width = nodes[link.source]
        elif link.unit in asked:
            width = max(int(shares[asked[link.unit]] * units[link.unit].filters + 0.5), 1)
        else:
            width = units[link.unit].filters
        nodes[link.target] = max(nodes.get(link.target, 0), width)
    for link in network.links:
        if link.unit is not None:
            inputs = nodes[link.source] // units[link.unit].groups if not link.ties else 1
            shapes[link.unit] = [nodes[link.target], inputs]
    return {"units": shapes, "joints": {}}


def kernel_stages(network: Network, image_size: int) -> dict[str, tuple[int, int, int]]:
    """Return {unit: (its stage, the height and the width of its kernels)}; a linear layer's kernels have one weight."""
    pixels, units = positions(network, image_size), network.all_units
    sizes = sorted({*pixels.values()}, reverse=True)
    return {name: (sizes.index(pixels[name]), *(unit.weight.shape[2:] or (1, 1))) for name, unit in units.items()}


@torch.no_grad()
def patterns(network: Network, image_size: int) -> Patterns:
    """Return {stage and size of kernels: which fraction of these kernels has a weight at each position, (height, width)}.

    A kernel is what one filter reads one channel by, and all kernels of a stage count alike. The network is whole; a weight
    under a mask is none.
    """
    present: dict[tuple[int, int, int], list[Tensor]] = {}
    for name, stage in kernel_stages(network, image_size).items():
        weight = network.get_submodule(name).weight_in_force
        present.setdefault(stage, []).append((weight != 0).double().reshape(-1, *stage[1:]).cpu())
    return {stage: torch.cat(kernels).mean(0) for stage, kernels in present.items()}


def sampled(network: Network, found: Patterns, image_size: int, seed: int) -> dict[str, Tensor]:
    """Draw masks of single weights with these patterns for another network, {unit: bool of its weight's shape}.

    Of the n kernels of a layer, n times the fraction of its stage have a weight at a position, to the nearest whole number; which
    ones is drawn for each position anew, by `seed`. ValueError for a network that has stages or kernels without a pattern.
    """
    asked, generator, masks = kernel_stages(network, image_size), torch.Generator().manual_seed(seed), {}
    if missing := {*asked.values()} - found.keys():
        stage, height, width = min(missing)
        number = len({stage for stage, *_ in found})
        raise ValueError(
            f"stage {stage + 1} has kernels of {height}x{width}, and the pruned networks, of {number} sizes of maps, have none"
        )
    for name, stage in asked.items():
        weight, fractions = network.get_submodule(name).weight, found[stage].flatten()
        kernels = weight.shape[:2].numel()
        order = torch.rand(kernels, len(fractions), generator=generator).argsort(0).argsort(0)
        masks[name] = (order < (fractions * kernels + 0.5).floor()).view(weight.shape)
    return masks


def _words(found: set[tuple[int, bool]]) -> str:
    """Return in words how many stages there are, and whether they have residual streams."""
    streams = sum(stream for _, stream in found)
    return f"{len({stage for stage, _ in found})} sizes of maps, {streams} of them with residual streams"
