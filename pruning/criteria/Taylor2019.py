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
    average: Literal["batch", "image"] = "batch",
) -> dict[str, Tensor]:
    """Squared first-order change of the loss (Molchanov et al., 2019, arXiv 1906.10771), in evaluation.

    With at='gate' the score is (dL/dz)^2 for a gate z = 1 on the filter's output, where dL/dz is the sum over positions of
    h dL/dh; behind batch norm and ReLU that is the paper's gate behind batch norm. With average='batch' L is the mean loss
    of a batch, and the squares are averaged over the batches: the authors' best variant, their code's method 22. With
    average='image' L is the loss of an image, and the squares are averaged over images: their method 23, "full gradient".
    With at='weight' the score is the sum of (w dL/dw)^2 over the filter's weights; with at='filter' it is (sum w dL/dw)^2, the
    filter's weights as one gate. In both L is the mean loss of the whole sample, and `average` has no effect.
    """
    if at == "gate":

        def change(h: Tensor, g: Tensor) -> Tensor:
            by_image = (h * g).double().sum((2, 3))
            return (by_image.mean(0, keepdim=True) if average == "batch" else by_image).square()

        return {name: changes.mean(0) for name, changes in context.sensitivities(units, change).items()}
    scores = {}
    for name, unit in units.items():
        products = context.groups(unit.weight.detach() * context.gradients_as_tested[unit]).double()
        scores[name] = products.square().sum(-1) if at == "weight" else products.sum(-1).square()
    return scores
