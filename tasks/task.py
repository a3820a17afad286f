"""A task says what is learned: it owns the data, the loss and the metric, and nothing else in the program knows them."""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn


class Split(Protocol):
    """A part of the data, such as the held-out images; the task that made it knows what is in it."""

    def __len__(self) -> int: ...


class Meter(Protocol):
    """Sums over many batches, kept on the device, so that nothing is read back before `read`."""

    first_bad: Tensor

    def add(self, outputs, targets, terms: dict[str, Tensor]) -> None:
        """Add a batch: the network's outputs, what was wanted, and each term of the loss, a mean over the batch."""

    def gather(self, team) -> None:
        """Add up the sums of all processes of the team; call it before the last `read`."""

    def read(self) -> dict:
        """The task's metric first, in %, then its other measures, "loss" and each of its terms, and "images"."""


class Task:
    """What every task offers. `train`, `valid` (None if nothing is held out) and `test` are its splits.

    `inputs` is the shape of one input, (channels, height, width); `outputs` is how many numbers the network's head gives;
    `metric` names the measure that chooses the best epoch. A step learns from `batch` inputs, over all processes, and an
    epoch has `steps` of them. A subclass `load`s itself, given the data settings, from what its data set reads.
    """

    metric: str
    inputs: tuple[int, int, int]
    outputs: int
    train: Split
    valid: Split | None
    test: Split
    batch: int
    steps: int

    @property
    def normalisation(self) -> tuple[list[float], list[float]]:
        """The mean and the deviation of each channel, in bytes, that inputs are normalised by."""
        raise NotImplementedError

    def as_known_to(self, card) -> Split | None:
        """The test split in the terms of a model file's card, its classes and its normalisation; None if it does not fit."""
        raise NotImplementedError

    def batches(self, epoch: int, part: tuple[int, int] = (0, 1)) -> Iterator:
        """The training batches of an epoch, as (inputs, targets): the i-th of n equal parts of each, for part (i, n)."""
        raise NotImplementedError

    def ordered(self, split: Split, batch: int) -> Iterator:
        """All of a split in its order, as (inputs, targets), not augmented."""
        raise NotImplementedError

    def sample(self, batches: int) -> Iterator:
        """So many batches of training images to score with, not augmented: the same ones at every call."""
        raise NotImplementedError

    def losses(self, outputs, targets) -> dict[str, Tensor]:
        """The terms of the loss by name, each a float32 mean over the batch; their sum is minimised."""
        raise NotImplementedError

    def image_losses(self, outputs, targets) -> Tensor:
        """The loss of each image, (images,): what criteria differentiate."""
        raise NotImplementedError

    def meter(self, device) -> Meter:
        """A fresh meter on this device."""
        raise NotImplementedError

    def comparable(self, network: nn.Module, inputs: Tensor) -> list[Tensor]:
        """The outputs of a network that must not change when filters are removed, (images, ...) each."""
        raise NotImplementedError

    def agreements(self, first: list[Tensor], second: list[Tensor]) -> int:
        """On how many images two networks' `comparable` outputs say the same."""
        raise NotImplementedError

    @classmethod
    def epoch_lines(cls, row: dict) -> list[str]:
        """The lines of stdout that tell an epoch, as they were published."""
        raise NotImplementedError

    @classmethod
    def result_lines(cls, result: dict) -> list[str]:
        """The lines that tell the last, the best and the test measures of a run."""
        raise NotImplementedError

    @classmethod
    def last_line(cls, best: dict) -> str:
        """The last line of stdout: the best epoch and its measures."""
        raise NotImplementedError
