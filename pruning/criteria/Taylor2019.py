"""This criterion, Taylor2019, keeps the filters whose removal would change the loss most, by its squared estimate."""

from typing import Annotated, Literal

from torch import Tensor

from models import Unit
from pruning.context import Context


def Taylor2019(
    units: Annotated[dict[str, Unit], "filters only"],
    context: Annotated[Context, "reads images", "reads maps"],
    *,
    at: Literal["gate", "weight", "filter"] = "gate",
) -> dict[str, Tensor]:
    """Squared first-order change of the loss (Molchanov et al., 2019, arXiv 1906.10771), in evaluation.

    at='gate': the mean over images of (dL/dz)^2 for a gate z = 1 on the filter's output, dL/dz = sum over positions h dL/dh;
    behind batch norm and ReLU that is the gate behind batch norm. at='weight': sum (w dL/dw)^2 over the filter's
    weights; at='filter': (sum w dL/dw)^2, the filter's weights as one gate. Both of the gradient of the sample's mean loss.
    """
    if at == "gate":
        changes = context.sensitivities(units, lambda h, g: (h * g).double().sum((2, 3)).square())
        return {name: by_image.mean(0) for name, by_image in changes.items()}
    scores = {}
    for name, unit in units.items():
        products = context.groups(unit.weight.detach() * context.gradients_as_tested[unit]).double()
        scores[name] = products.square().sum(-1) if at == "weight" else products.sum(-1).square()
    return scores
