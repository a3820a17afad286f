"""Classification learns the class of an image, by cross-entropy, measured by accuracy."""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from settings.errors import Refused
from settings.registry import DATASETS
from tasks.images import Dataset, Images, hold_out
from tasks.meters import Accuracy
from tasks.task import Task


class Classification(Task):
    """The task of naming the class of an image. A step learns from `batch` images; `images` is the data set on its device."""

    metric = "top1"

    def __init__(self, images: Dataset, batch: int, augment: str, seed: int):
        self.images, self.augment, self.seed = images, augment, seed
        self.batch = min(batch, len(images.train))
        self.steps = images.steps(self.batch)
        self.train, self.valid, self.test, self.classes = images.train, images.valid, images.test, images.classes

    @classmethod
    def load(cls, data, *, batch_size: int, seed: int, device: str) -> "Classification":
        source = _source(data)
        train, test, classes = source.read()
        valid = None
        if data.val_size > 0:
            kept, held = hold_out(train.labels, data.val_size)
            if len(held) == 0 or len(kept) == 0:
                raise Refused(f"--val_size {data.val_size:g} of {len(train)} training images leaves a split empty")
            train, valid = train.pick(kept), train.pick(held)
        if len(train) < 2:
            raise Refused("batch norm needs at least two training images")
        images = Dataset(train, valid, test, classes, data.normalise, device)
        return cls(images, batch=batch_size, augment=data.augment or source.augment, seed=seed)

    @classmethod
    def outputs_of(cls, data) -> int:
        return _source(data).class_count()

    def __str__(self) -> str:
        return str(self.images)

    @property
    def inputs(self) -> tuple[int, int, int]:
        return (self.images.channels, self.images.image_size, self.images.image_size)

    @property
    def outputs(self) -> int:
        return len(self.classes)

    @property
    def normalisation(self) -> tuple[list[float], list[float]]:
        return self.images.mean.tolist(), self.images.std.tolist()

    def as_known_to(self, card) -> Images | None:
        """Return the test images with the labels and the normalisation of a model file's card.

        None if a class of the data is unknown to the card.
        """
        if not set(self.classes) <= set(card.classes):
            return None
        device = self.images.device
        self.images.mean, self.images.std = (torch.tensor(part, device=device) for part in (card.mean, card.std))
        number = torch.tensor([card.classes.index(name) for name in self.classes], device=device)
        return Images(self.test.pixels, number[self.test.labels])

    def batches(self, epoch: int, part: tuple[int, int] = (0, 1)) -> Iterator[tuple[Tensor, Tensor]]:
        return self.images.epoch(self.batch, self.augment, self.seed, epoch, part)

    def ordered(self, split: Images, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self.images.ordered(split, batch)

    def sample(self, batches: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self.images.sample(self.batch, batches, self.seed)

    @staticmethod
    def losses(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"cross_entropy": F.cross_entropy(outputs.float(), targets)}

    @staticmethod
    def image_losses(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none")

    @staticmethod
    def meter(device) -> Accuracy:
        return Accuracy(device)

    @staticmethod
    def comparable(network: nn.Module, inputs: Tensor) -> list[Tensor]:
        return [network(inputs)]

    @staticmethod
    def agreements(first: list[Tensor], second: list[Tensor]) -> int:
        return int((first[0].argmax(1) == second[0].argmax(1)).sum())

    @classmethod
    def epoch_lines(cls, row: dict) -> list[str]:
        epoch, trained, valid = row["epoch"], row["train"], row["valid"]
        return [
            f"train {epoch} ====> Acc@1 {trained['top1']:.3f} Acc@5 {trained['top5']:.3f}",
            f"valid {epoch} ====> Acc@1 {valid['top1']:.3f} Acc@5 {valid['top5']:.3f}",
        ]

    @classmethod
    def result_lines(cls, result: dict) -> list[str]:
        last, best, test = result["last"]["valid"], result["best"]["valid"], result["test"]
        where = f"{last['images']} held-out images" if result["held_out"] else "test set, which so chose the best epoch"
        best_of_all = f"best {best['top1']:.2f} at epoch {result['best']['epoch']}"
        return [
            f"result accuracy: last {last['top1']:.2f}, {best_of_all} ({where})",
            f"result test accuracy: {test['top1']:.2f} after the last epoch ({test['images']} images)",
        ]

    @classmethod
    def last_line(cls, best: dict) -> str:
        """Return the published list of the best epoch: its number, its training accuracies, its validation accuracies."""
        scores = [best[part][name] for part in ("train", "valid") for name in ("top1", "top5")]
        return str([best["epoch"], *(round(score, 2) for score in scores)])


def _source(data):
    """Return the source of images that the data settings name."""
    source = DATASETS.get(data.dataset)
    return source(Path(data.data_dir), image_size=data.image_size, channels=data.channels, fit=data.fit)
