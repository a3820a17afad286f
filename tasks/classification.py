"""Images and their classes: a data set by name, and accuracy over it."""

from pathlib import Path

import torch

from settings.errors import Refused
from tasks.datasets.cifar import read_cifar
from tasks.datasets.digits import read_digits
from tasks.datasets.folder import folder_classes, read_folder
from tasks.images import Dataset, hold_out


def class_count(dataset: str, directory: str) -> int:
    """How many classes a data set has, without loading it."""
    return len(folder_classes(Path(directory))) if dataset == "folder" else {"cifar100": 100}.get(dataset, 10)


def load(dataset: str, directory: str, *, val_size: float, normalise: str, image_size: int, device) -> Dataset:
    """A data set by name, `val_size` of its training images held out. Refused if it is not there or not usable."""
    if dataset == "digits":
        train, test, classes = read_digits()
    elif dataset == "folder":
        train, test, classes = read_folder(Path(directory), image_size)
    else:
        train, test, classes = read_cifar(dataset, Path(directory))
    valid = None
    if val_size > 0:
        kept, held = hold_out(train.labels, val_size)
        if len(held) == 0 or len(kept) == 0:
            raise Refused(f"--val_size {val_size:g} of {len(train)} training images leaves a split empty")
        train, valid = train.pick(kept), train.pick(held)
    if len(train) < 2:
        raise Refused("batch norm needs at least two training images")
    return Dataset(train, valid, test, classes, normalise, device)


class Meter:
    """Sums over an epoch, kept on the device: nothing is read back before `read`."""

    def __init__(self, device):
        self.sums = torch.zeros(4, device=device)
        self.images = 0
        self.first_bad = torch.full((), -1, device=device)
        self.steps = 0

    @torch.no_grad()
    def add(self, logits, labels, loss, penalty=None):
        ranked = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        penalty = torch.zeros_like(loss) if penalty is None else penalty
        self.sums += torch.stack([ranked[:, 0].sum(), ranked.sum(), loss * len(labels), penalty * len(labels)])
        bad = ~torch.isfinite(loss + penalty) & (self.first_bad < 0)
        self.first_bad = torch.where(bad, self.steps, self.first_bad)
        self.images += len(labels)
        self.steps += 1

    def gather(self, team) -> None:
        """Add up the sums of all processes; before the last `read`."""
        images = torch.tensor(float(self.images), dtype=torch.float64)
        team.sum_(images)
        team.sum_(self.sums)
        team.largest_(self.first_bad)
        self.images = int(images)

    def read(self) -> dict:
        """Top-1 and top-5 in %, loss and penalty, each a mean over so many images."""
        top1, top5, loss, penalty = (total / self.images for total in self.sums.tolist())
        return {"top1": 100 * top1, "top5": 100 * top5, "loss": loss, "penalty": penalty, "images": self.images}
