"""Least squares keep the criterion's choice, and solve for the weights that read it."""

from typing import Annotated

from torch import Tensor

from pruning.repair import Problem


def least_squares(
    problem: Problem,
    *,
    rows: Annotated[int, "at least 1", "at most 1000000"] = 5000,
    images: Annotated[int, "at least 1", "at most 1000000"] = 500,
) -> tuple[Tensor, list[Tensor]]:
    """The criterion chooses; then all weights of the readers by least squares (He et al., 2017, arXiv 1707.06168, step 2).

    W' = argmin ||Y - X W'||^2 over the channels X that stay, where Y is the product in the network before the cut.
    """
    readers = problem.draw(rows, images)
    return problem.keep, [reader.solved(problem.keep) for reader in readers]
