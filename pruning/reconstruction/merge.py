"""Merging removes the channels that are most like others, and lets their readers read those instead; no image is needed."""

from typing import Annotated

import torch
from torch import Tensor

from pruning.merging import merged
from pruning.repair import Problem


def merge(problem: Annotated[Problem, "hidden layers"]) -> tuple[Tensor, list[Tensor]]:
    """Each channel that goes is merged into the one most like it, without images (Srinivas and Babu, 2015, arXiv 1507.06149).

    Removing j into i costs s_ij = mean_k(a_kj^2) * ||W_i - W_j||^2, where W_i are the weights and the bias that write channel
    i, batch norm folded in, and a_kj all weights k that read channel j. The pair of least cost goes first, a_i += a_j, until
    as many channels are left as the criterion keeps. Where W_i = W_j no output changes.
    """
    readers = problem.outgoing()
    # one row for each channel: the weights of all readers that read it
    outgoing = torch.cat([weight.transpose(0, 1).flatten(1) for weight in readers], 1)
    keep, outgoing = merged(problem.incoming(), outgoing, int(problem.keep.sum()))
    parts = outgoing.split([weight[:, 0].numel() for weight in readers], 1)
    shapes = [(len(keep), len(weight), weight.shape[2]) for weight in readers]
    return keep, [part.reshape(shape).transpose(0, 1) for part, shape in zip(parts, shapes, strict=True)]
