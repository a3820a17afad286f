"""This criterion, from_initial, keeps weights by what they were before the first step and what they are now."""

from typing import Annotated, Literal

import torch
from torch import Tensor

from models import Unit
from pruning.context import Context
from settings.errors import Failed

SCORES = {
    "large_final": lambda initial, final: final.abs(),
    "small_final": lambda initial, final: -final.abs(),
    "large_init": lambda initial, final: initial.abs(),
    "small_init": lambda initial, final: -initial.abs(),
    "magnitude_increase": lambda initial, final: final.abs() - initial.abs(),
    "movement": lambda initial, final: (final - initial).abs(),
}
BOTH = {"large_init_large_final": ("large_init", "large_final"), "small_init_small_final": ("small_init", "small_final")}


def from_initial(
    unit: Annotated[Unit, "initial weights"],
    context: Context,
    *,
    counts: Literal["given", "signs"] = "given",
    by: Annotated[
        Literal[
            "magnitude_increase",
            "movement",
            "large_final",
            "small_final",
            "large_init",
            "small_init",
            "large_init_large_final",
            "small_init_small_final",
        ],
        "unless counts",
    ] = "magnitude_increase",
    signs: Annotated[Literal["any", "same", "different"], "unless counts"] = "any",
) -> Annotated[Tensor, "scope: local"]:
    """Mask criteria of Zhou, Lan, Liu and Yosinski, 2019 (arXiv 1905.01067), of weights w_i before the first step, w_f now.

    'magnitude_increase' |w_f| - |w_i|, 'movement' |w_f - w_i|, 'large_final' |w_f|, 'large_init' |w_i|, 'small_' the same
    with a minus; summed over the weights of a piece. 'large_init_large_final' keeps what is above one percentile by both:
    the score is the smaller of a piece's two ranks in its layer, among those that are not cut for good. With `signs` a
    weight whose signs are not the same, or not different, has the score 0, or the layer's lowest one where that is below 0.
    counts='signs' finds its own counts: a piece goes if none of its weights has the sign that it had before the first step.
    Failed where the weights before the first step have not been kept.
    """
    initial = getattr(unit.gate, "initial", None)
    if initial is None:
        raise Failed("from_initial compares with the weights before the first step, which only --prune_imp from_initial keeps")
    final = unit.weight.detach()
    if counts == "signs":
        return context.groups(initial.sign() == final.sign()).any(-1)
    fails = torch.zeros_like(final, dtype=torch.bool)
    if signs != "any":
        fails = (initial.sign() == final.sign()) != (signs == "same")

    def score(name: str) -> Tensor:
        single = SCORES[name](initial, final)
        return context.groups(single.where(~fails, single.min().clamp_max(0))).sum(-1)

    if by in SCORES:
        return score(by)
    gone = ~unit.gate.decide() if not unit.gate.straight_through else None
    return torch.minimum(*(_ranks(score(name), gone) for name in BOTH[by]))


def _ranks(scores: Tensor, gone: Tensor | None) -> Tensor:
    """Return the places of scores in their order, from 0 for the lowest one, in float64; what is `gone` is before all others."""
    if gone is not None:
        scores = scores.masked_fill(gone, -torch.inf)
    return scores.flatten().argsort(stable=True).argsort().double().view_as(scores)
