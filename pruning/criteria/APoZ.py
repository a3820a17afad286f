from typing import Annotated, Literal

from torch import Tensor

from models import Unit
from pruning.context import Context


def APoZ(
    units: Annotated[dict[str, Unit], "filters only"],
    context: Annotated[Context, "reads images", "reads maps"],
    *,
    counts: Literal["given", "deviation"] = "given",
) -> dict[str, Tensor]:
    """Fraction of a filter's outputs that are not 0 (Network Trimming: Hu et al., 2016, arXiv 1607.03250).

    1 - APoZ, APoZ = #{zeros behind the ReLU} / (images x height x width). counts='deviation' finds its own counts, as the
    paper: what has an APoZ above the layer's mean + standard deviation (of the population) goes.
    """
    alive = context.responses(units, lambda maps: (maps != 0).double().mean((2, 3)))
    alive = {name: found.mean(0) for name, found in alive.items()}
    if counts == "given":
        return alive
    return {name: score >= score.mean() - score.std(correction=0) for name, score in alive.items()}
