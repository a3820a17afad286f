"""This criterion, GraSP, keeps the weights without which the gradient would be smaller, by a Hessian-gradient product."""

from typing import Annotated

from torch import Tensor

from models import Unit
from pruning.context import Context


def GraSP(
    unit: Unit,
    context: Annotated[Context, "reads images"],
    *,
    per_class: Annotated[int, "images a class"] = 10,
    temperature: Annotated[float, "above 0"] = 200.0,
) -> Annotated[Tensor, "scope: global(normalise='none', floor=0)"]:  # all are changes of one gradient's norm
    """Gradient signal preservation (Wang, Zhang and Grosse, 2020, arXiv 2002.07376): sum w * (H g), with its sign.

    g is the gradient of the mean loss in all weights and H its Hessian, both at logits divided by `temperature`. The authors'
    score is -w * (H g): the highest are removed. Without a weight of a large w * (H g) the squared norm of the gradient would
    fall by about twice as much. `per_class` images of each class are read, or with 0 the scoring sample; batch norm uses
    the statistics of these images.
    """
    return context.groups(unit.weight.detach() * context.hessian_product(unit, per_class, temperature)).sum(-1)
