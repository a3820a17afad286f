"""This criterion, LcP, learns for each layer how its scores compare with those of the other layers."""

import math
from operator import itemgetter
from typing import Annotated, Literal

import torch
from torch import Tensor

from models import Unit
from pruning.context import Context


def LcP(
    units: Annotated[dict[str, Unit], "filters only"],
    context: Annotated[Context, "reads images"],
    *,
    of: Literal["L1", "L2", "bn_scale"] = "L2",
    learn: Literal["offset", "scale_and_offset"] = "offset",
    evaluations: int = 100,
) -> Annotated[dict[str, Tensor], "scope: global(normalise='none')"]:  # the offsets make layers comparable
    """Layer-compensated pruning (Chin et al., 2018, arXiv 1810.00518): another criterion + an offset learned for each layer.

    s = I + beta_l; learn='scale_and_offset' is LeGR (Chin et al., 2020, arXiv 1904.12368): alpha_l I + kappa_l. Regularised
    evolution: of 16 out of a population of 64 the best is changed in a tenth of its layers, scales by exp(N(0, step)),
    offsets by N(0, step x the layer's standard deviation, for learn='offset' that of all scores), the step falling from 1
    to 0.2. What counts is the loss of the masks that would be chosen, on the first batch of the sample and with its
    statistics: batch norm's own are those of the whole network, and without them all candidates are at chance. The first
    candidate changes nothing.
    """
    base = {name: score.double() for name, score in context.score(of, units).items()}
    names, generator = list(base), context.generator
    every = float(torch.cat([score.flatten() for score in base.values()]).std(correction=0))
    spreads = {name: every if learn == "offset" else float(base[name].std(correction=0)) for name in names}

    def scores(candidate: dict[str, tuple[float, float]]) -> dict[str, Tensor]:
        moved = {name: candidate[name][0] * base[name] + candidate[name][1] for name in names}
        # one shift for all layers keeps their order; it makes scores positive, as scopes that divide by a mean need them
        least = min(float(score.min()) for score in moved.values())
        return {name: score - least + 1e-12 for name, score in moved.items()}

    def loss(candidate) -> float:
        with context.under(context.choose(scores(candidate))):
            mean_loss = context.measure(batches=1, training=True)[0]
        return mean_loss if math.isfinite(mean_loss) else math.inf

    def draw(times: int, below: int) -> list[int]:
        return torch.randint(below, (times,), generator=generator).tolist()

    def changed(parent, step: float):
        child = dict(parent)
        for number in draw(max(len(names) // 10, 1), len(names)):
            name, (scale, offset) = names[number], parent[names[number]]
            first, second = (step * torch.randn(2, generator=generator)).tolist()
            child[name] = (scale * math.exp(first) if learn == "scale_and_offset" else scale, offset + second * spreads[name])
        return child

    identity = dict.fromkeys(names, (1.0, 0.0))
    population = [(loss(identity), identity)]
    best = population[0]
    for number in range(1, evaluations):
        step = 1 - 0.8 * number / evaluations
        rivals = [population[index] for index in draw(16, len(population))]
        child = changed(min(rivals, key=itemgetter(0))[1], step)
        population = [*population[-63:], (loss(child), child)]
        best = min(best, population[-1], key=itemgetter(0))
    return scores(best[1])
