"""Classification learns the class of an image, by cross-entropy, measured by accuracy."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from settings.calls import call_text
from settings.errors import Refused
from settings.registry import AUGMENTATIONS, parse_call
from tasks.classes import class_weights, weighted_losses, without_images
from tasks.images import Dataset, Images, hold_out
from tasks.listing import unsorted_pictures
from tasks.meters import Accuracy
from tasks.named import TOLD, Named, first_of, source_of
from tasks.pictures import read_pictures
from tasks.streams import in_parts
from tasks.task import Said
from tasks.unlabelled import Unlabelled, terms


class Classification(Named):
    """The task of naming the class of an image. A step learns from `batch` images; `images` is the data set on its device."""

    metric, word = "top1", "accuracy"
    measures = trained = ("top1", "top5", "images")

    def __init__(self, images: Dataset, batch: int, augment: str, seed: int, notes: Sequence[str] = ()):
        self.images, self.augment, self.seed, self.notes = images, augment, seed, list(notes)
        self.plain = parse_call(augment)[1].get("base", augment)  # what comes before random operations
        self.batch = min(batch, len(images.train))
        self.steps = images.steps(self.batch)
        self.train, self.valid, self.test, self.classes = images.train, images.valid, images.test, images.classes
        self.unlabelled = images.unlabelled

    @classmethod
    def load(cls, data, *, batch_size: int, seed: int, device: str, quiet: bool = True) -> "Classification":
        source = source_of(data, quiet)
        augment = _augmentation(data, source)
        source.device, source.from_files = device, AUGMENTATIONS.get(augment)().from_files
        train, test, classes = source.read()
        valid = source.read_held_out(classes) if data.val_size > 0 else None
        if data.val_size > 0 and valid is None:
            kept, held = hold_out(train.labels, data.val_size)
            if len(held) == 0 or len(kept) == 0:
                raise Refused(f"--val_size {data.val_size:g} of {len(train)} training images leaves a split empty")
            valid = train.part_with(held)
        if len(train) < 2:
            raise Refused("batch norm needs at least two training images")
        notes = source.notes + ([] if valid is None else without_images(valid, classes))
        images = Dataset(train, valid, test, classes, data.normalise, device)
        if data.labelled is not None:
            if not isinstance(train.pixels, Tensor):
                raise Refused("--labelled needs all training images in memory: allow them more by --memory")
            images.keep_labels(data.labelled, seed)
        if data.unlabelled is not None:
            paths, more = unsorted_pictures(Path(data.unlabelled))
            pixels = read_pictures(paths, source.inputs[1], source.inputs[0], data.fit, quiet)
            images.unlabelled, notes = Unlabelled(pixels.to(device)), [*notes, *more]
        task = cls(images, batch=batch_size, augment=augment, seed=seed, notes=notes)
        if data.class_weights == "balanced":
            task.weigh()
        return task

    @classmethod
    def load_test(cls, data, *, device: str, quiet: bool = True) -> "Classification":
        source = source_of(data, quiet)
        source.device = device
        test, classes = source.read_test()
        images = Dataset(test.pick(slice(0)), None, test, classes, "half", device)
        return cls(images, batch=0, augment="none", seed=0, notes=source.notes)

    def weigh(self) -> None:
        """Let each class count alike in the losses, however many training images it has (--class_weights balanced)."""
        weigh = partial(weighted_losses, class_weights(self.train, len(self.classes)))
        # in front of the methods, which are static because criteria may be asked without a task
        self.image_losses = weigh
        self.losses = partial(_weighted_terms, weigh)

    def __str__(self) -> str:
        return str(self.images)

    @property
    def inputs(self) -> tuple[int, int, int]:
        return (self.images.channels, self.images.image_size, self.images.image_size)

    @property
    def normalisation(self) -> tuple[list[float], list[float]]:
        return self.images.mean.tolist(), self.images.std.tolist()

    def record(self) -> dict:
        splits = {"train": self.train, "held_out": self.valid, "test": self.test}
        counts = {
            name: torch.bincount(split.labels.cpu(), minlength=len(self.classes)).tolist()
            for name, split in splits.items()
            if split is not None
        }
        counts |= {} if self.unlabelled is None else {"unlabelled": [len(self.unlabelled)]}
        mean, std = self.normalisation
        return {"classes": list(self.classes), "images": counts, "mean": mean, "std": std}

    def as_known_to(self, card) -> Images | None:
        """Return the test images with the labels and the normalisation of a model file's card.

        None if a class of the data is unknown to the card.
        """
        numbers = self.numbers_in(card)
        if numbers is None:
            return None
        self.normalise_by(card.mean, card.std)
        return Images(self.test.pixels, torch.tensor(numbers, device=self.images.device)[self.test.labels])

    def normalise_by(self, mean: list[float], std: list[float]) -> None:
        self.images.normalise_by(mean, std)

    def batches(self, epoch: int, part: tuple[int, int] = (0, 1), noise: bool = True) -> Iterator[tuple]:
        return self.images.epoch(self.batch, self.augment if noise else self.plain, self.seed, epoch, part)

    def unlabelled_batches(self, batch: int) -> Iterator[tuple[Tensor, None]]:
        for pixels in self.unlabelled.pixels.split(batch):
            yield self.images.normalise(pixels), None

    def ordered(self, split: Images, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self.images.ordered(split, batch)

    def examples(self, images: int) -> Tensor:
        return next(in_parts(self.test.pixels, [slice(0, images)]))

    def sample(self, batches: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self.images.sample(self.batch, batches, self.seed)

    @staticmethod
    def of_each_class(batches: Iterable[tuple[Tensor, Tensor]], number: int, classes: int) -> list[tuple[Tensor, Tensor]]:
        counts, size, inputs, targets = [0] * classes, 1, [], []
        for images, labels in batches:
            chosen, size = [], max(size, len(labels))
            for index, label in enumerate(labels.tolist()):
                if counts[label] < number:
                    counts[label] += 1
                    chosen.append(index)
            inputs.append(images[chosen])
            targets.append(labels[chosen])
            if min(counts) == number:
                break
        inputs, targets = torch.cat(inputs), torch.cat(targets)
        parts = -(-len(targets) // size)
        return list(zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True))

    @staticmethod
    def losses(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> dict[str, Tensor]:
        return terms(partial(F.cross_entropy, label_smoothing=label_smoothing), outputs.float(), targets, label_smoothing)

    @staticmethod
    def image_losses(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none")

    @staticmethod
    def meter(device, classes: Sequence[str] = (), training: bool = False) -> Accuracy:
        return Accuracy(device, classes)

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
        test = result["test"]
        return [
            f"result accuracy: {cls.last_and_best(result)}",
            f"result test accuracy: {test['top1']:.2f} {cls.after(result)} ({test['images']} images)",
        ]

    @classmethod
    def test_lines(cls, result: dict, precision: str) -> list[str]:
        head = f"result test accuracy: {result['top1']:.2f}, loss {result['loss']:.4f} ({result['images']} images), {precision}"
        rows = [f"{name} {accuracy:.2f} ({images})" for name, (accuracy, images) in result["classes"].items()]
        lines = [head, f"result classes, worst first, and their images: {first_of(rows)}"]
        mistakes = [(images, true, said) for true, taken in result["confusions"].items() for said, images in taken.items()]
        if mistakes:
            mistakes.sort(key=lambda mistake: -mistake[0])
            told = ", ".join(f"{images} {true} for {said}" for images, true, said in mistakes[:TOLD])
            lines.append(f"result confusions: {told}")
        return lines

    @classmethod
    def predicted(cls, card, outputs: Tensor, size: tuple[int, int]) -> list[Said]:
        probabilities, numbers = outputs[0].softmax(0).topk(min(TOLD, len(card.classes)))
        ranked = zip(numbers.tolist(), probabilities.tolist(), strict=True)
        return [Said(", ".join(f"{card.classes[number]} {probability:.4f}" for number, probability in ranked))]

    @classmethod
    def last_line(cls, best: dict) -> str:
        """Return the published list of the best epoch: its number, its training accuracies, its validation accuracies."""
        scores = [best[part][name] for part in ("train", "valid") for name in ("top1", "top5")]
        return str([best["epoch"], *(round(score, 2) for score in scores)])


def _weighted_terms(weigh: Callable, outputs: Tensor, targets, label_smoothing: float = 0.0) -> dict[str, Tensor]:
    """Return the terms of the loss in which `weigh` says what each image's cross-entropy counts."""
    return terms(lambda *batch: weigh(*batch, label_smoothing).mean(), outputs.float(), targets, label_smoothing)


def _augmentation(data, source) -> str:
    """Return the answer to --augment, with what comes before random operations: the data set's own, where it is not said."""
    name, options = parse_call(data.augment or source.augment)
    if "base" not in AUGMENTATIONS.entries[name].options or options.get("base"):
        return data.augment or source.augment
    return call_text(name, options | {"base": source.augment})
