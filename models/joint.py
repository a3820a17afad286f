"""The residual joint, where a branch is added to its stream."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import Unit


class Joint(nn.Module):
    """The residual joint: the branch is added to its stream, then the ReLU.

    A stream with fewer channels than are written gets zeros behind its own: He et al., 2016 (arXiv 1512.03385), option
    A. Where filters were removed, the branch's channel i is channel `index[i]` of the stream, which has `width` (as the
    indexed addition of Tessier et al., 2022, arXiv 2206.06247); `constant`, (width,), is what filters removed from
    before batch norm still add.
    """

    def __init__(self):
        super().__init__()
        self.width: int | None = None
        self.register_buffer("index", None, persistent=False)
        self.register_buffer("constant", None)
        self.in_place = False

    def shape(self) -> dict:
        """What `place` takes, as plain values."""
        return {"width": self.width, "index": self.index.tolist(), "constant": self.constant is not None}

    def place(self, width: int, index: list[int], constant: bool = False) -> None:
        """Say where the branch writes; a constant's values are yet to be loaded."""
        self.width, self.index = width, torch.tensor(index, dtype=torch.int64)
        self.constant = torch.zeros(width) if constant else None

    def fold(self, branch: Unit) -> None:
        """Let the folded last unit of the branch do the placing."""
        self.in_place = True
        if self.index is None or (branch.filters == 0 and self.constant is None):
            return
        layer = branch.layer
        weight = layer.weight.new_zeros(self.width, *layer.weight.shape[1:])
        bias = layer.weight.new_zeros(self.width) if self.constant is None else self.constant.clone()
        if branch.filters:
            weight[self.index] = layer.weight
            bias[self.index] += layer.bias
        layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.width = self.index = self.constant = None

    def forward(self, branch: Tensor, stream: Tensor) -> Tensor:
        width = branch.shape[1] if self.width is None else self.width
        if self.in_place and stream.shape[1] < branch.shape[1]:
            branch[:, : stream.shape[1]] += stream
            return branch.relu_()
        if stream.shape[1] < width:
            stream = F.pad(stream, (0, 0, 0, 0, 0, width - stream.shape[1]))
        if self.constant is not None:
            stream = stream + self.constant.to(stream.dtype).view(-1, 1, 1)
        if branch.shape[1] == width > 0:
            stream = stream.add_(branch) if self.in_place else stream + branch
        elif branch.shape[1]:
            # index_add would lose the memory format
            stream = (stream if self.in_place else stream.clone()).index_add_(1, self.index, branch.to(stream.dtype))
        # where nothing was added the stream is another's, who may need it as it is
        return F.relu(stream, inplace=self.in_place or branch.shape[1] > 0)


def subsample(x: Tensor, stride: int) -> Tensor:
    """The shortcut without parameters of He et al., 2016 (arXiv 1512.03385), option A: every stride-th pixel."""
    return x[:, :, ::stride, ::stride]
