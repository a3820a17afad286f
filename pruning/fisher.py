"""This file measures how the loss curves in the weights: the empirical Fisher, the mean over images of g g^T.

g is the gradient of one image's loss for a layer's weights. A gradient of the mean loss, squared, is another and much smaller
quantity. Between blocks of a layer's weights, and between layers, the Fisher is taken as 0.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from models import Unit
from pruning.context import Context, Scores

# float64 numbers of inverses that are held at once, 1 GiB; a layer that needs more is held alone
AT_ONCE = 2**27


def diagonal(context: Context, units: dict[str, Unit]) -> Scores:
    """Return the diagonal of the Fisher, mean g^2, of every unit's weight, in float64 and in the weight's shape."""
    sums = {name: torch.zeros_like(unit.weight, dtype=torch.float64) for name, unit in units.items()}
    context.image_gradients(units, lambda name, gradients: sums[name].add_(gradients.double().square().sum(0)))
    return {name: total / context.images for name, total in sums.items()}


def inverses(context: Context, units: dict[str, Unit], block: int, damping: float) -> Iterator[tuple[str, Tensor]]:
    """Yield for every unit its name and the inverse of damping + Fisher, (blocks, size, size), in float64; see `Inverse`.

    Every portion of the units whose inverses fit into memory costs a pass through the images.
    """
    for portion in _portions(units, block):
        held = {name: Inverse(unit.weight.detach(), block, damping, context.images) for name, unit in portion.items()}
        context.image_gradients(portion, lambda name, gradients, held=held: held[name].add(gradients))
        for name in portion:
            yield name, held.pop(name).value


class Inverse:
    """The inverse of H = damping + Fisher over blocks of consecutive weights of a layer: `value`, (blocks, size, size).

    It begins at the identity / damping. Images are added by Woodbury's identity, which turns H^-1 into
    H^-1 - H^-1 G^T (images + G H^-1 G^T)^-1 G H^-1 for rows G of gradients; for one row this is the recursion of Hassibi and
    Stork, 1993. `images` is the number of rows in the end. Blocks hold at most `block` weights, all as many; where the weights
    do not divide, the last block ends in weights without a gradient.
    """

    def __init__(self, weight: Tensor, block: int, damping: float, images: int):
        self.block, self.images = block, images
        blocks, size = in_blocks(weight, block).shape
        identity = torch.eye(size, dtype=torch.float64, device=weight.device)
        self.value = (identity / damping).repeat(blocks, 1, 1)

    def add(self, gradients: Tensor) -> None:
        """Add images by the gradients of their losses, (images, *the weight's shape)."""
        rows = torch.stack([in_blocks(gradient, self.block) for gradient in gradients], 1).double()
        product = rows @ self.value
        among = product @ rows.mT + self.images * torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
        half = torch.linalg.solve_triangular(torch.linalg.cholesky(among), product, upper=False)
        torch.baddbmm(self.value, half.mT, half, alpha=-1, out=self.value)


def in_blocks(values: Tensor, block: int) -> Tensor:
    """Return a layer's values as (blocks, size), each size at most `block`; the last block ends in zeros, or False."""
    flat = values.flatten()
    blocks = -(-len(flat) // block)
    size = -(-len(flat) // blocks)
    return torch.cat([flat, flat.new_zeros(blocks * size - len(flat))]).view(blocks, size)


def without(inverse: Tensor, weight: Tensor, keep: Tensor, block: int) -> tuple[Tensor, float]:
    """Return a layer's weight once all but `keep` is 0 and the rest makes up for it, and by how much the loss then rises.

    The rise is that of the quadratic model with this H^-1, which has its minimum at `weight`. Of all weights that are 0
    there the least rise is wanted: dw = -H^-1[:, S] l where S is cut, l = (H^-1[S, S])^-1 w_S, and the rise is w_S l / 2.
    """
    values, cut = in_blocks(weight.double(), block), in_blocks(~keep, block)
    both = cut[:, :, None] & cut[:, None, :]
    # what stays gets rows of the identity, and so a multiplier of 0: blocks that lose different weights are solved together
    among = torch.where(both, inverse, 0).diagonal_scatter(torch.where(cut, inverse.diagonal(dim1=1, dim2=2), 1), dim1=1, dim2=2)
    multipliers = torch.linalg.solve(among, torch.where(cut, values, 0))
    changed = values - (inverse @ multipliers[..., None])[..., 0]
    changed = torch.where(cut, 0, changed).flatten()[: weight.numel()].view(weight.shape)
    return changed.to(weight.dtype), 0.5 * float((values * multipliers).sum())


def _portions(units: dict[str, Unit], block: int) -> Iterator[dict[str, Unit]]:
    """Divide the units into portions whose inverses together are at most AT_ONCE numbers, in their order."""
    portion, numbers = {}, 0
    for name, unit in units.items():
        blocks, size = in_blocks(unit.weight.detach(), block).shape
        if portion and numbers + blocks * size * size > AT_ONCE:
            yield portion
            portion, numbers = {}, 0
        portion[name] = unit
        numbers += blocks * size * size
    yield portion
