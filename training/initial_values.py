"""This file says what a ticket's weights can begin with, other than the values they once had, and be where they are cut."""

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


@torch.no_grad()
def hold_what_is_cut(pruner, pruned: str, masks: dict[str, Tensor], shrunk: dict[str, Tensor]) -> None:
    """Give the gates of a pruner's units what weights that are cut are in place of 0, under masks of bool tensors."""
    for name, unit in pruner.units.items():
        weight = unit.weight.detach()
        tensors = (mask.to(weight.device) for mask in (masks[name], shrunk.get(name, torch.zeros_like(masks[name]))))
        unit.gate.hold(held_values(pruned, weight, *tensors))


def held_values(pruned: str, weight: Tensor, mask: Tensor, shrunk: Tensor) -> Tensor:
    """Return what a layer's cut weights are, 0 where the mask keeps one (mask-0 actions: Zhou et al., 2019, arXiv 1905.01067).

    'initial' is the weight that the layer begins with; with 'grown' and 'grown_all' only what is not `shrunk` has it, that is
    what training has not moved towards 0, and the rest is 0.
    """
    return weight.masked_fill(mask if pruned == "initial" else mask | shrunk, 0)


@torch.no_grad()
def begin_at_zero(pruner, masks: dict[str, Tensor], shrunk: dict[str, Tensor]) -> None:
    """Let the weights begin at 0 that the masks keep and that are `shrunk`; both are bool tensors by unit."""
    for name, unit in pruner.units.items():
        unit.weight.masked_fill_((masks[name] & shrunk[name]).to(unit.weight.device), 0)
