"""Accuracy and loss over images."""

import torch
import torch.nn.functional as F

import data
from distributed import Team
from models import Network

BATCH = 500


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

    def gather(self, team: Team) -> None:
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


@torch.no_grad()
def evaluate(
    model: Network, dataset: data.Dataset, images: data.Images, predict, batches: int | None = None, team: Team | None = None
) -> dict:
    """Accuracy and loss over a split, in evaluation mode, masks in force; `batches` ends it early.

    `predict` maps pixels to logits by this model; the processes of a team take turns.
    """
    team = team or Team()
    model.eval()
    meter = Meter(dataset.device)
    for number, (pixels, labels) in enumerate(dataset.ordered(images, BATCH)):
        if number == batches:
            break
        if number % team.size == team.rank:
            logits = predict(pixels)
            meter.add(logits, labels, F.cross_entropy(logits.float(), labels))
    meter.gather(team)
    return meter.read()
