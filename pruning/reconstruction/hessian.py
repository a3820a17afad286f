"""The Hessian says how the weights that survive a cut make up for those that are gone."""

from typing import Annotated

from models.numerics import without_tf32
from pruning import fisher
from pruning.survivors import Survivors


def hessian(
    survivors: Annotated[Survivors, "surviving weights"],
    *,
    images: Annotated[int, "at least 1"] = 512,
    block: Annotated[int, "at least 1"] = 100,
    damping: Annotated[float, "at least 1e-9"] = 1e-5,
    steps: Annotated[int, "at least 1"] = 1,
) -> list[dict]:
    """The criterion chooses; then the weights that survive, by the inverse Hessian (Hassibi and Stork, 1993; arXiv 2004.14340).

    dw = -H^-1[:, S] (H^-1[S, S])^-1 w_S, where S is what is cut of a block of `block` weights of a layer and H is damping + the
    mean over images of g g^T: all of S at once, so that the quadratic model rises by the least there is. In each of the
    `steps` the criterion chooses and H is measured anew. Returns a record for each step.
    """
    for number in range(1, steps + 1):
        keep, context = survivors.choice(number / steps), survivors.context(images)
        weights, rise = {}, 0.0
        with without_tf32():
            for name, inverse in fisher.inverses(context, survivors.units, block, damping):
                weights[name], more = fisher.without(inverse, survivors.units[name].weight.detach(), keep[name], block)
                rise += more
            survivors.put(weights, context, predicted=rise)
    return survivors.records
