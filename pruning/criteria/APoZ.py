"""This criterion, APoZ, keeps the filters that are seldom zero."""

from typing import Annotated, Literal

from torch import Tensor

from models import Unit
from pruning.context import Context


def APoZ(
    units: Annotated[dict[str, Unit], "filters only", "zeros of a ReLU"],
    context: Annotated[Context, "reads images", "reads maps"],
    *,
    counts: Literal["given", "deviation"] = "given",
) -> dict[str, Tensor]:
    """Fraction of a filter's outputs that are not 0 (Network Trimming: Hu et al., 2016, arXiv 1607.03250).

    The score is 1 - APoZ, with APoZ = #{zeros behind the ReLU} / (images x height x width). counts='deviation' finds its own
    counts by the paper's rule: a filter goes if its APoZ is above the layer's mean + standard deviation (of the population).
    """
    fractions = context.responses(units, lambda maps: (maps != 0).double().mean((2, 3)))
    scores = {name: by_image.mean(0) for name, by_image in fractions.items()}
    if counts == "given":
        return scores
    return {name: score >= score.mean() - score.std(correction=0) for name, score in scores.items()}
