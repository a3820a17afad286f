"""This file says what else the weights of a ticket can begin with than the values that they once had."""

import torch
from torch import Tensor

# kinds of the procedure `control` that keep the run's mask, and give each layer its own values in other places
KINDS = ("permute", "permute_kept", "signed_permute", "signed_permute_kept", "signed_constant")


@torch.no_grad()
def put_other_values(pruner, kind: str, masks: dict[str, Tensor], chance: torch.Generator) -> None:
    """Give the weights of a pruner's units the values that tickets of this kind begin with, under masks of bool tensors."""
    for name, unit in pruner.units.items():
        unit.weight.copy_(other_values(kind, unit.weight.detach().cpu(), masks[name], chance))


def other_values(kind: str, weight: Tensor, mask: Tensor, chance: torch.Generator) -> Tensor:
    """Return what a layer's weights begin with, of the weight's shape (Zhou et al., 2019, arXiv 1905.01067).

    'permute' takes the layer's weights to other places, 'permute_kept' only those that its mask keeps, among themselves;
    'signed_' leaves the sign of each place. 'signed_constant' is sign(w) times the population standard deviation of all.
    """
    if kind == "signed_constant":
        return weight.sign() * weight.std(correction=0)
    kept = mask.view(*mask.shape, *[1] * (weight.dim() - mask.dim())).expand_as(weight).flatten()
    places = kept.nonzero().squeeze(1) if kind.endswith("kept") else torch.arange(weight.numel())
    values = weight.flatten().clone()
    values[places] = values[places[torch.randperm(len(places), generator=chance)]]
    values = values.view_as(weight)
    return values.abs() * weight.sign() if kind.startswith("signed") else values
