"""This file defines the residual joint, where a branch is added to its stream."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _ReluFromTheRight(torch.autograd.Function):
    """The ReLU, whose derivative at exactly 0 is taken from the right: 1 instead of 0."""

    @staticmethod
    def forward(ctx, total: Tensor) -> Tensor:
        ctx.save_for_backward(total)
        return F.relu(total)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (total,) = ctx.saved_tensors
        # above the largest negative number is from 0 on
        return torch.ops.aten.threshold_backward(gradient, total, -torch.finfo(total.dtype).tiny)


class DropPath(nn.Module):
    """Stochastic depth drops the whole branch of an image with probability `rate` while it trains.

    Huang et al., 2016 (arXiv 1603.09382), who draw once for a batch, and scale in evaluation. Here each image draws for itself,
    and a branch that stays is divided by 1 - rate, so that evaluation needs nothing.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.register_buffer("rate", torch.tensor(rate))

    def factor(self, branch: Tensor) -> Tensor:
        """Draw what the branch (images, channels, height, width) is multiplied by: (images, 1, 1, 1) of 0 and 1 / (1 - rate)."""
        kept = torch.rand(len(branch), 1, 1, 1, device=branch.device) >= self.rate
        return (kept / (1 - self.rate)).to(branch.dtype)


def linear_decay(rate: float, blocks: int) -> list[float]:
    """Return how often each of so many blocks is dropped, rate * l / blocks for the l-th: the linear rule of Huang et al."""
    return [rate * number / blocks for number in range(1, blocks + 1)]


class Joint(nn.Module):
    """A joint adds a residual branch to its stream and applies the ReLU to the sum, or nothing, without `activation`.

    Where every filter that writes a channel is masked, the sum is exactly 0. torch takes the ReLU's derivative there as 0, so
    that these filters have no gradient; with `from_the_right` it is 1. A filter that is live has the same gradient with
    both: behind the ReLU of an earlier joint, a sum that is not exactly 0 stops what is not its own.

    A stream with fewer channels than are written gets zeros behind its own: He et al., 2016 (arXiv 1512.03385), option
    A. Where filters were removed, the branch's channel i is channel `index[i]` of the stream, which has `width` (as the
    indexed addition of Tessier et al., 2022, arXiv 2206.06247); `constant`, (width,), is what filters removed from
    before batch norm still add. A branch of the stream's whole width writes its channels in their order.

    With a rate `drop_path` above 0 branches are dropped in training, with what their removed filters still add.
    """

    def __init__(self, activation: bool = True, drop_path: float = 0.0):
        super().__init__()
        self.activation = activation
        self.drop_path = DropPath(drop_path) if drop_path else None
        self.width: int | None = None
        self.from_the_right = False
        self.register_buffer("index", None, persistent=False)
        self.register_buffer("constant", None)

    def shape(self) -> dict:
        """Return what `place` takes, as plain values."""
        return {"width": self.width, "index": self.index.tolist(), "constant": self.constant is not None}

    def place(self, width: int | None = None, index: list[int] | None = None, constant: bool = False) -> None:
        """Say which channels of a stream of `width` the branch writes to; with `constant` the values are yet to be loaded.

        Without a width the branch writes all channels in their order.
        """
        self.width, self.index = width, None if width is None else torch.tensor(index, dtype=torch.int64)
        self.constant = torch.zeros(width) if constant else None

    def widened(self, branch: Tensor, stream: Tensor, factor: Tensor | None = None) -> Tensor:
        """Return the stream padded with zero channels to its full width, with the constant, times `factor`, added."""
        width = branch.shape[1] if self.width is None else self.width
        if stream.shape[1] < width:
            stream = F.pad(stream, (0, 0, 0, 0, 0, width - stream.shape[1]))
        if self.constant is not None:
            constant = self.constant.to(stream.dtype).view(-1, 1, 1)
            stream = stream + (constant if factor is None else constant * factor)
        return stream

    def forward(self, branch: Tensor, stream: Tensor) -> Tensor:
        """Return ReLU(stream + branch), or the sum itself; both are (images, channels, height, width)."""
        factor = None
        if self.drop_path is not None and self.drop_path.training:
            factor = self.drop_path.factor(branch)
            branch = branch * factor
        stream = self.widened(branch, stream, factor)
        if branch.shape[1] == stream.shape[1] > 0:
            stream = stream + branch
        elif branch.shape[1]:
            # index_add would lose the memory format
            stream = stream.clone().index_add_(1, self.index, branch.to(stream.dtype))
        if not self.activation:
            return stream
        # in this order a captured evaluation does not depend on the switch
        if torch.is_grad_enabled() and self.from_the_right:
            return _ReluFromTheRight.apply(stream)
        # where nothing was added the stream may still be read elsewhere, and must stay as it is
        return F.relu(stream, inplace=branch.shape[1] > 0)

    def activated(self, x: Tensor) -> Tensor:
        """Return what the joint's ReLU, if it has one, makes of `x`, which stays as it is."""
        return F.relu(x) if self.activation else x


def subsample(x: Tensor, stride: int) -> Tensor:
    """Return every stride-th pixel: the shortcut without parameters of He et al., 2016 (arXiv 1512.03385), option A."""
    return x[:, :, ::stride, ::stride]
