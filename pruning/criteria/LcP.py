"""This criterion, LcP, learns for each layer how its scores compare with those of the other layers."""

import math
from operator import itemgetter
from typing import Annotated, Literal

import torch
from torch import Tensor

from models import Unit
from pruning.context import Context

POPULATION = 64


def LcP(
    units: Annotated[dict[str, Unit], "filters only"],
    context: Annotated[Context, "reads images"],
    *,
    of: Literal["L1", "L2", "bn_scale"] = "L2",
    learn: Literal["offset", "scale_and_offset"] = "offset",
    evaluations: Annotated[int, "at least 1", "at most 100000"] = 100,
) -> Annotated[dict[str, Tensor], "scope: global(normalise='none')"]:  # the offsets make layers comparable
    """Layer-compensated pruning (Chin et al., 2018, arXiv 1810.00518): another criterion + an offset learned for each layer.

    s = I + beta_l, or with learn='scale_and_offset', which is LeGR (Chin et al., 2020, arXiv 1904.12368), s = alpha_l I +
    kappa_l, where I is the squared norm for of='L2'. Regularised evolution: of 16 out of a population of 64 the best is
    changed in a tenth of its layers, scales by exp(N(0, step)), offsets by N(0, 1) deviations, and takes the place of the
    oldest; the step falls from 1 to 0.2. As in its authors' code LeGR starts from random candidates beside I itself, a
    deviation is that of the layer's scores, and the offsets' step stays 1; their `evaluations` are 400. For learn='offset'
    the search starts from I alone, a deviation is that of all scores, and the offsets' step falls too.

    What counts is the loss under the masks that would be chosen, on the first batch of the sample and by that batch's
    statistics: batch norm's own are those of the whole network, and with them all candidates are at chance.
    """
    legr = learn == "scale_and_offset"
    base = {name: score.double() for name, score in context.score(of, units).items()}
    if legr and of == "L2":
        base = {name: score.square() for name, score in base.items()}
    names, generator = list(base), context.generator
    every = float(torch.cat([score.flatten() for score in base.values()]).std(correction=0))
    spreads = {name: float(base[name].std(correction=0)) if legr else every for name in names}

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

    identity = dict.fromkeys(names, (1.0, 0.0))
    population = [(loss(identity), identity)]
    best = population[0]
    for number in range(1, evaluations):
        step = 1 - 0.8 * number / evaluations
        if legr and number < POPULATION:
            child = _changed(identity, names, spreads, 1.0, legr, generator)
        else:
            rivals = [population[index] for index in draw(16, len(population))]
            layers = [names[index] for index in draw(max(len(names) // 10, 1), len(names))]
            child = _changed(min(rivals, key=itemgetter(0))[1], layers, spreads, step, legr, generator)
        population = [*population[1 - POPULATION :], (loss(child), child)]
        best = min(best, population[-1], key=itemgetter(0))
    return scores(best[1])


def _changed(parent: dict, layers: list[str], spreads: dict[str, float], step: float, legr: bool, generator) -> dict:
    """Return the parent with the offsets of these layers changed at random and, for LeGR, with their scales changed too."""
    child = dict(parent)
    for name in layers:
        scale, offset = parent[name]
        random = torch.randn(2, generator=generator)
        first, second = (step * random).tolist()
        if legr:
            child[name] = (scale * math.exp(first), offset + float(random[1]) * spreads[name])
        else:
            child[name] = (scale, offset + second * spreads[name])
    return child
