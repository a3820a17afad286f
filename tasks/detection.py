"""Detection learns the boxes of objects and their classes, by SSD's two losses, measured by mean average precision."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from models.layouts import default_boxes
from settings.errors import Refused
from settings.registry import parse_call
from tasks.average_precision import Precision
from tasks.boxed import SHARE, Augmented, Boxed, in_batches, padded
from tasks.boxes import box_losses, detections, joined
from tasks.images import hold_out, normalisation, normalised
from tasks.memory import machine_memory
from tasks.meters import Losses
from tasks.named import Named, first_of, source_of
from tasks.task import Said

# pictures whose pixels the normalisation is taken from
MEASURED = 500
# the least score of a detection that --predict says
SAID = 0.5


class Detection(Named):
    """The task of finding boxes and their classes. A step learns from `batch` images, whose side has `pixels` pixels.

    Outputs are maps of SSD, targets one tensor (images, rows, 6); see tasks/boxes.py.
    """

    metric, word = "mAP", "mAP"
    measures = ("mAP", "AP50", "AP75", "VOC07", "images")
    trained = ("images",)

    def __init__(self, parts: dict[str, Boxed | None], classes: list[str], pixels: int, device: str, notes: Sequence[str] = ()):
        self.train, self.valid, self.test = (parts[name] for name in ("train", "held_out", "test"))
        self.classes, self.pixels, self.device, self.notes = classes, pixels, torch.device(device), list(notes)
        self.anchors = default_boxes(pixels).to(device)
        self.most = max(len(rows) for part in parts.values() if part is not None for rows in [*part.targets, ()])
        self.batch, self.steps, self.augment, self.seed = 0, 1, "none", 0
        self.normalise_by([127.5] * 3, [127.5] * 3)

    @classmethod
    def load(cls, data, *, batch_size: int, seed: int, device: str, quiet: bool = True) -> "Detection":
        source = source_of(data, quiet)
        train, test, classes = source.read()
        valid = source.read_held_out(classes) if data.val_size > 0 else None
        if data.val_size > 0 and valid is None:
            kept, held = hold_out(torch.zeros(len(train), dtype=torch.long), data.val_size)
            if len(held) == 0 or len(kept) == 0:
                raise Refused(f"--val_size {data.val_size:g} of {len(train)} training images leaves a split empty")
            train, valid = train.pick(kept), train.pick(held)
        if len(train) < 2:
            raise Refused("batch norm needs at least two training images")
        parts = {"train": train, "held_out": valid, "test": test}
        notes = source.notes + _decoded(parts, data.image_size)
        task = cls(parts, classes, data.image_size, device, notes)
        task.batch = min(batch_size, len(train))
        task.steps = max(len(train) // task.batch, 1)
        asked = parse_call(data.augment or source.augment)[0]
        # what a recipe says of whole images is for none of these
        task.augment, task.seed = asked if asked in ("ssd", "none") else source.augment, seed
        step = -(-len(train) // MEASURED)
        task.mean, task.std = normalisation(data.normalise, 3, lambda: train.pick(slice(0, None, step)).squares(data.image_size))
        return task

    @classmethod
    def load_test(cls, data, *, device: str, quiet: bool = True) -> "Detection":
        source = source_of(data, quiet)
        test, classes = source.read_test()
        parts = {"train": test.pick(slice(0)), "held_out": None, "test": test}
        return cls(parts, classes, data.image_size, device, source.notes + _decoded(parts, data.image_size))

    def __str__(self) -> str:
        held = "none" if self.valid is None else len(self.valid)
        parts = f"{len(self.train)} training images, {held} held out, {len(self.test)} test images"
        return f"{parts}, {len(self.classes)} classes of boxes"

    @property
    def inputs(self) -> tuple[int, int, int]:
        return 3, self.pixels, self.pixels

    @property
    def normalisation(self) -> tuple[list[float], list[float]]:
        return self.mean.tolist(), self.std.tolist()

    def normalise_by(self, mean: list[float], std: list[float]) -> None:
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)

    def record(self) -> dict:
        splits = {name: part for name, part in (("train", self.train), ("held_out", self.valid), ("test", self.test)) if part}
        boxes = {
            name: torch.bincount(torch.cat(part.targets)[:, 4].long(), minlength=len(self.classes) + 1)[1:].tolist()
            for name, part in splits.items()
        }
        mean, std = self.normalisation
        images = {name: [len(part)] for name, part in splits.items()}
        return {"classes": list(self.classes), "images": images, "boxes": boxes, "mean": mean, "std": std}

    def as_known_to(self, card) -> Boxed | None:
        numbers = self.numbers_in(card)
        if numbers is None:
            return None
        self.normalise_by(card.mean, card.std)
        known = self.test.pick(slice(None))
        renumber = torch.tensor([0, *(number + 1 for number in numbers)], dtype=torch.float32)
        known.targets = [torch.cat([rows[:, :4], renumber[rows[:, 4:5].long()], rows[:, 5:]], 1) for rows in known.targets]
        return known

    def batches(self, epoch: int, part: tuple[int, int] = (0, 1), noise: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + epoch))
        order = order[: self.steps * self.batch].view(self.steps, self.batch)
        width = self.batch // part[1]
        mine = order[:, part[0] * width : (part[0] + 1) * width].flatten().tolist()
        augment = self.augment if noise else "none"
        items = Augmented(self.train, mine, self.pixels, self.most, augment, self.seed, epoch)
        for images, targets in in_batches(items, width, self.device):
            yield self._normalised(images), targets

    def ordered(self, split: Boxed, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(split), batch):
            chosen = slice(start, start + batch)
            targets = torch.stack([padded(rows, self.most) for rows in split.targets[chosen]])
            yield self._normalised(split.squares(self.pixels, chosen).to(self.device)), targets.to(self.device)

    def examples(self, images: int) -> Tensor:
        return self.test.squares(self.pixels, slice(0, images)).to(self.device)

    def sample(self, batches: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(self.seed))
        chosen = order[: self.batch * min(batches, self.steps)]
        yield from self.ordered(self.train.pick(chosen), self.batch)

    def _normalised(self, pixels: Tensor) -> Tensor:
        return normalised(pixels, self.mean, self.std)

    @staticmethod
    def of_each_class(batches: Iterable[tuple[Tensor, Tensor]], number: int, classes: int) -> list[tuple[Tensor, Tensor]]:
        counts, size, inputs, targets = {}, 1, [], []
        for images, rows in batches:
            size = max(size, len(rows))
            for index, labels in enumerate(rows[..., 4].long().tolist()):
                shown = {label for label in labels if label}
                if any(counts.get(label, 0) < number for label in shown):
                    counts |= {label: counts.get(label, 0) + 1 for label in shown}
                    inputs.append(images[index])
                    targets.append(rows[index])
            if len(counts) == classes and min(counts.values()) >= number:
                break
        inputs, targets = torch.stack(inputs), torch.stack(targets)
        parts = -(-len(targets) // size)
        return list(zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True))

    def losses(self, outputs: tuple[Tensor, ...], targets: Tensor, label_smoothing: float = 0.0) -> dict[str, Tensor]:
        boxes, labels, found = box_losses(outputs, targets, self.anchors)
        total = found.sum().clamp_min(1)
        # among measures "classes" is the table of all classes
        return {"boxes": (boxes.sum() / total).float(), "labels": (labels.sum() / total).float()}

    def image_losses(self, outputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        boxes, labels, found = box_losses(outputs, targets, self.anchors)
        return (boxes + labels) / found.clamp_min(1)

    def meter(self, device, classes: Sequence[str] = (), training: bool = False) -> Losses:
        if training:
            return Losses(device)
        return Precision(device, partial(detections, anchors=self.anchors), classes)

    @staticmethod
    def comparable(network: nn.Module, inputs: Tensor) -> list[Tensor]:
        return list(network(inputs))

    @staticmethod
    def agreements(first: list[Tensor], second: list[Tensor]) -> int:
        # whether the object that each is surest of is of one class, at one default box
        best = [joined(tuple(outputs))[1].softmax(2)[..., 1:].flatten(1).argmax(1) for outputs in (first, second)]
        return int((best[0] == best[1]).sum())

    @classmethod
    def epoch_lines(cls, row: dict) -> list[str]:
        epoch, trained, valid = row["epoch"], row["train"], row["valid"]
        terms = "".join(f" {name} {trained[name]:.4f}" for name in ("loss", "boxes", "labels"))
        return [f"train {epoch} ====>{terms}", f"valid {epoch} ====> {_precisions(valid, 3)}"]

    @classmethod
    def result_lines(cls, result: dict) -> list[str]:
        test = result["test"]
        return [
            f"result mAP: {cls.last_and_best(result)}",
            f"result test {_precisions(test)} {cls.after(result)} ({test['images']} images)",
        ]

    @classmethod
    def test_lines(cls, result: dict, precision: str) -> list[str]:
        rows = [f"{name} {value:.2f} ({boxes})" for name, (value, boxes) in result["classes"].items()]
        return [
            f"result test {_precisions(result)}, loss {result['loss']:.4f} ({result['images']} images), {precision}",
            f"result classes by their AP, worst first, and their boxes: {first_of(rows)}",
        ]

    @classmethod
    def predicted(cls, card, outputs: tuple[Tensor, ...], size: tuple[int, int]) -> list[Said]:
        (found,) = detections(outputs, default_boxes(card.image_size).to(outputs[0].device))
        sides, said = torch.tensor([*size, *size]), []
        for box, score, label in zip(
            found["boxes"].cpu() * sides, found["scores"].tolist(), found["labels"].tolist(), strict=True
        ):
            if score >= SAID:
                name, corners = card.classes[label - 1], box.tolist()
                words = f"{name} {score:.4f} at {' '.join(f'{corner:.1f}' for corner in corners)}"
                said.append(Said(words, tuple(corners), name))
        return said or [Said("nothing")]

    @classmethod
    def last_line(cls, best: dict) -> str:
        """Return the best epoch: its number, its training loss, and mAP, AP50 and AP75 where it was validated."""
        measures = [best["train"]["loss"], *(best["valid"][name] for name in ("mAP", "AP50", "AP75"))]
        return str([best["epoch"], *(round(measure, 2) for measure in measures)])


def _precisions(measures: dict, digits: int = 2) -> str:
    """Return the average precisions as a line tells them."""
    return " ".join(f"{name} {measures[name]:.{digits}f}" for name in Detection.measures[:4])


def _decoded(parts: dict[str, Boxed | None], size: int) -> list[str]:
    """Decode the pictures into memory, where all together take no more than a part of it; return what there is to say."""
    splits = [part for part in parts.values() if part is not None]
    needed, most = sum(part.bytes for part in splits), SHARE * machine_memory()
    if needed > most:
        return [
            f"{needed / 1e9:.1f} GB of pictures, more than {SHARE:.0%} of the memory, are read from their files at every step"
        ]
    for name, part in parts.items():
        if part is not None and name == "train":
            part.hold()
        elif part is not None:
            part.stretched = part.squares(size)
    return []
