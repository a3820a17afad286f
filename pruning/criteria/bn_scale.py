"""This criterion, bn_scale, keeps the filters that batch norm scales by a large factor."""

from typing import Annotated

from torch import Tensor

from models import Unit
from pruning.context import Context


def bn_scale(unit: Annotated[Unit, "filters only", "batch norm"], context: Context) -> Tensor:
    """Batch norm's scale (Network Slimming: Liu et al., 2017, arXiv 1708.06519): |gamma|, best trained with --reg bn_l1.

    The paper compares the raw values of all layers, as --prune_scope "global(normalise='none')" does; its code cuts one filter
    more, as threshold='published' does. Of a learned scale of each channel it is that. ValueError for a convolution without
    batch norm.
    """
    if unit.is_scale:
        return unit.weight.detach().flatten().abs()
    if unit.norm is None:
        raise ValueError("bn_scale needs batch norm behind every convolution")
    return unit.norm.weight.detach().abs()
