"""This file carries the widths that pruning found over to another network: guided pruning (Liu et al., 2019, arXiv 1810.05270).

A stage is all prunable convolutions whose output has the same size. In a residual network those that write its streams are
counted apart from the others: pruning leaves them other widths, and all writers of a stream need one.
"""

from models import Network
from pruning.accounting import positions
from pruning.channels import cannot_be_cut, in_groups

Fractions = dict[tuple[int, bool], float]


def stages(network: Network, image_size: int) -> dict[str, tuple[int, bool]]:
    """Return {convolution: (its stage, whether it writes a residual stream)}; stage 0 has the largest maps.

    The network must be whole. ValueError for a convolution in groups, whose width is not free.
    """
    for name in in_groups(network):
        raise ValueError(cannot_be_cut(name, network.get_submodule(name)))
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


def mean_of_runs(runs: list[Fractions]) -> Fractions:
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


def _words(found: set[tuple[int, bool]]) -> str:
    """Return in words how many stages there are, and whether they have residual streams."""
    streams = sum(stream for _, stream in found)
    return f"{len({stage for stage, _ in found})} sizes of maps, {streams} of them with residual streams"
