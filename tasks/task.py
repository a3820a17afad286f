"""A task says what is learned: it owns the data, the loss and the metric, and nothing else in the program knows them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from tasks.unlabelled import Unlabelled


class Split(Protocol):
    """A split is a part of the data, such as the held-out images; the task that made it knows what is in it."""

    def __len__(self) -> int: ...


class Meter(Protocol):
    """A meter sums over many batches. It keeps its sums on the device, so that nothing is copied back before `read`."""

    first_bad: Tensor

    def add(self, outputs, targets, terms: dict[str, Tensor]) -> None:
        """Add a batch: the network's outputs, the targets, and the terms of the loss by name, each a mean over the batch."""

    def gather(self, team) -> None:
        """Add up the sums of all processes of the team; call it before the last `read`."""

    def read(self) -> dict:
        """Return the measures by name: the task's metric first, in %, then its others, "loss", each of its terms, "images"."""


@dataclass(frozen=True)
class Said:
    """Something that is predicted of a picture: the words of a line, and a box in pixels with its name, where it has one."""

    words: str
    box: tuple[float, float, float, float] | None = None
    name: str = ""


class Task:
    """A task offers data, loss and metric. Its splits are `train`, `valid` (None if no input is held out) and `test`.

    `inputs` is the shape of one input, (channels, height, width); `outputs` is how many numbers the network's head gives;
    `metric` names the measure that chooses the best epoch, `word` is what it is called in lines; `measures` are those of an
    evaluation that lines tell, `trained` those of the training batches. `unlabelled` are training inputs whose targets nobody
    reads, if there are some.
    A step learns from `batch` inputs, over all processes, and an epoch has `steps` of them. `notes` are lines for stderr on
    the data that was read. The class methods `load` and `load_test` of a subclass make the task from the data settings,
    `load_test` with the test part alone.
    """

    metric: str
    word: str
    measures: tuple[str, ...]
    trained: tuple[str, ...]
    inputs: tuple[int, int, int]
    outputs: int
    train: Split
    valid: Split | None
    test: Split
    batch: int
    steps: int
    notes: Sequence[str] = ()
    unlabelled: Unlabelled | None = None

    def pseudo_labels(self) -> dict:
        """Return what a checkpoint keeps of unlabelled inputs: the pseudo-labels that they have, as tensors and plain values."""
        return {} if self.unlabelled is None else self.unlabelled.plain()

    @property
    def normalisation(self) -> tuple[list[float], list[float]]:
        """The mean and the deviation of each channel, in bytes, by which inputs are normalised."""
        raise NotImplementedError

    def as_known_to(self, card) -> Split | None:
        """Return the test split with the classes and the normalisation of a model file's card; None if it does not fit."""
        raise NotImplementedError

    def batches(self, epoch: int, part: tuple[int, int] = (0, 1), noise: bool = True) -> Iterator:
        """Yield the training batches of an epoch as (inputs, targets); `part` (i, n) asks for the i-th of n parts of each.

        Without `noise` they are augmented without random operations.
        """
        raise NotImplementedError

    def unlabelled_batches(self, batch: int) -> Iterator:
        """Yield all unlabelled inputs in their order, not augmented, as (inputs, None)."""
        raise NotImplementedError

    def ordered(self, split: Split, batch: int) -> Iterator:
        """Yield all of a split in its order, not augmented, as (inputs, targets)."""
        raise NotImplementedError

    def examples(self, images: int) -> Tensor:
        """Return the first test images as they are before they are normalised, or fewer where there are not as many."""
        raise NotImplementedError

    def sample(self, batches: int) -> Iterator:
        """Yield so many batches of training images to score with, not augmented: the same ones at every call."""
        raise NotImplementedError

    def of_each_class(self, batches, number: int, classes: int) -> list:
        """Return the first `number` inputs of each class in these batches, or all of a class that has fewer, in their order.

        They are in batches of about the same size, none larger than those given; no more of these are read than it takes.
        """
        raise NotImplementedError

    def losses(self, outputs, targets, label_smoothing: float = 0.0) -> dict[str, Tensor]:
        """Return the terms of the loss by name, each a float32 mean over the batch; their sum is minimised.

        `label_smoothing` is the fraction of each label that is spread over all classes; only a task of labels is given one.
        """
        raise NotImplementedError

    def image_losses(self, outputs, targets) -> Tensor:
        """Return the loss of each image, (images,), which criteria differentiate."""
        raise NotImplementedError

    def meter(self, device, classes: Sequence[str] = (), training: bool = False) -> Meter:
        """Return a fresh meter on this device, which also tells apart `classes`, where they are named.

        While `training` it may leave out measures that take long, and then has no more than the terms of the loss.
        """
        raise NotImplementedError

    def record(self) -> dict:
        """Return what a checkpoint and config.json keep of the data, as plain values: names, counts, normalisation."""
        raise NotImplementedError

    def check(self, record: dict | None) -> None:
        """Go on with the data of an earlier run by its `record`, whose normalisation is taken over.

        Refused if the names of the classes are others; other counts are added to `notes`. None is the record of a run that
        is older than records.
        """
        raise NotImplementedError

    def compare_names(self, names: list[str] | None, where: str) -> None:
        """Add to `notes` that a network was trained on other class names than these data have; `where` says which network."""
        raise NotImplementedError

    def comparable(self, network: nn.Module, inputs: Tensor) -> list[Tensor]:
        """Return the outputs of a network that must not change when filters are removed, (images, ...) each."""
        raise NotImplementedError

    def agreements(self, first: list[Tensor], second: list[Tensor]) -> int:
        """Return on how many images the `comparable` outputs of two networks say the same."""
        raise NotImplementedError

    @classmethod
    def epoch_lines(cls, row: dict) -> list[str]:
        """Return the lines of stdout that tell an epoch, in the published format."""
        raise NotImplementedError

    @classmethod
    def last_and_best(cls, result: dict) -> str:
        """Return the words that tell the metric after the last and the best epoch, and which images it is of."""
        if "last" not in result:
            where = "held-out images" if result["held_out"] else "images of the test set"
            return f"{result['valid'][cls.metric]:.2f} without training ({result['valid']['images']} {where})"
        last, best = result["last"]["valid"], result["best"]
        where = f"{last['images']} held-out images" if result["held_out"] else "test set, which so chose the best epoch"
        return f"last {last[cls.metric]:.2f}, best {best['valid'][cls.metric]:.2f} at epoch {best['epoch']} ({where})"

    @classmethod
    def after(cls, result: dict) -> str:
        """Return the words that tell which epoch's weights were tested: the last one's or, with --keep_best, the best one's."""
        if "last" not in result:
            return "without training"
        return f"after epoch {result['kept']['epoch']}, the one kept" if "kept" in result else "after the last epoch"

    @classmethod
    def result_lines(cls, result: dict) -> list[str]:
        """Return the lines that tell the last, the best and the test measures of a run."""
        raise NotImplementedError

    @classmethod
    def test_lines(cls, result: dict, precision: str) -> list[str]:
        """Return the lines that tell what --evaluate has measured, by class too, in numbers of this `precision`."""
        raise NotImplementedError

    @classmethod
    def predicted(cls, card, outputs, size: tuple[int, int]) -> list["Said"]:
        """Return what --predict says of one picture of this (width, height), given the network's outputs and its card."""
        raise NotImplementedError

    @classmethod
    def last_line(cls, best: dict) -> str:
        """Return the last line of stdout: the best epoch and its measures."""
        raise NotImplementedError
