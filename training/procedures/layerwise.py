"""The layerwise procedure cuts and repairs one layer after the other."""

from dataclasses import replace
from typing import Annotated

import torch

import models
from pruning.layer_order import layers_for
from settings.arguments import Settings
from settings.errors import Refused
from settings.meaning import merges_hidden_layers
from settings.own_files import own_file
from training.keeping import units_to_keep
from training.stages import Stage, around_the_cut


def layerwise(
    settings: Settings, *, epochs: Annotated[int, "at most 100000"] = 1
) -> Annotated[list[Stage], "repairs layer by layer"]:
    """Cut and repair a layer, train for some epochs at --lr, and so on; then train for --epochs (Luo et al., 2017).

    Without `epochs` between layers what is wanted of each is the network before the first cut; with them, as it was trained.
    """
    if own_file(settings.network.arch):
        raise Refused(
            "--procedure layerwise plans by the layers of a network with a name, and not of one in a file: choose another"
        )
    with torch.device("meta"):
        network = models.build(settings.network.arch)
    network.linear_too = merges_hidden_layers(settings)
    *before, last = around_the_cut(settings)
    layer = replace(last, epochs=epochs, progress=(0.0, 0.0), warmup_epochs=0.0)
    trained = ", trained=True" if epochs else ""
    layers = [
        replace(layer, name=f"layer {name}", enter=(f"reconstruct(layer={name!r}{trained})",))
        for name in (layer.name for layer in layers_for(network, settings.pruning.reconstruct, units_to_keep(network, settings)))
    ]
    return [*before, *layers, last]
