"""This criterion, Taylor2017, keeps the filters whose outputs the loss depends on, by activation times gradient."""

from typing import Annotated, Literal

from torch import Tensor

from models import Unit
from pruning.context import Context


def Taylor2017(
    units: Annotated[dict[str, Unit], "filters only"],
    context: Annotated[Context, "reads images", "reads maps"],
    *,
    inside: Literal["image", "position", "sample"] = "image",
    flops: float = 0.0,
) -> dict[str, Tensor]:
    """Activation x gradient (Molchanov et al., 2017, arXiv 1611.06440): mean over images |mean over positions h dL/dh|.

    Each layer's scores are divided by their L2 norm; then `flops` times the GFLOPs of a feature map, 2 HW (k k inputs + 1),
    is subtracted, so compare with --prune_scope "global(normalise='none')". `inside` says what the absolute value is taken
    of, in which programs differ: the mean over an 'image', a 'position', or the mean over the whole 'sample'.
    """
    products = context.sensitivities(units, lambda h, g: _reduced((h * g).double(), inside))
    scores = {}
    for name, unit in units.items():
        theta = products[name].mean(0)
        theta = theta.abs() if inside == "sample" else theta
        scores[name] = theta / theta.norm().clamp_min(1e-30)
        if flops:
            scores[name] = scores[name] - flops * 1e-9 * 2 * context.shapes[name][1][1:].numel() * (unit.weight[0].numel() + 1)
    return scores


def _reduced(product: Tensor, inside: str) -> Tensor:
    """Return one value for each image and filter, (images, filters), from (images, filters, height, width)."""
    if inside == "position":
        return product.abs().mean((2, 3))
    return product.mean((2, 3)).abs() if inside == "image" else product.mean((2, 3))
