"""This file holds the meters, which add up what a task measures over many batches."""

import torch
from torch import Tensor


class Accuracy:
    """A meter of classification adds up accuracies and the terms of the loss over the batches that it is shown.

    `first_bad` is the number of the first batch whose loss was not finite, -1 where there was none.
    """

    def __init__(self, device):
        self.ranked = torch.zeros(2, device=device)
        self.terms: dict[str, Tensor] = {}
        self.images = self.steps = 0
        self.first_bad = torch.full((), -1, device=device)

    @torch.no_grad()
    def add(self, outputs: Tensor, targets: Tensor, terms: dict[str, Tensor]) -> None:
        """Add a batch: logits (images, classes), labels (images,), and the terms of the loss by name."""
        hits = outputs.topk(min(5, outputs.shape[1])).indices == targets[:, None]
        self.ranked += torch.stack([hits[:, 0].sum(), hits.sum()])
        for name, term in terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + term.detach() * len(targets)
        bad = ~torch.isfinite(sum(terms.values())) & (self.first_bad < 0)
        self.first_bad = torch.where(bad, self.steps, self.first_bad)
        self.images += len(targets)
        self.steps += 1

    def gather(self, team) -> None:
        """Add up the sums of all processes of the team; call it before the last `read`."""
        images = torch.tensor(float(self.images), dtype=torch.float64)
        # of a split with few batches the other processes may have seen none, and so no terms; the first one always has
        names = team.share(list(self.terms))
        self.terms = {name: self.terms.get(name, torch.zeros((), device=self.ranked.device)) for name in names}
        for total in (images, self.ranked, *self.terms.values()):
            team.sum_(total)
        team.largest_(self.first_bad)
        self.images = int(images)

    def read(self) -> dict:
        """Return top-1 and top-5 accuracy in %, "loss" as the sum of its terms, each term by name, and the images seen."""
        top1, top5 = (100 * (total / self.images) for total in self.ranked.tolist())
        terms = {name: float(total) / self.images for name, total in self.terms.items()}
        return {"top1": top1, "top5": top5, "loss": sum(terms.values()), **terms, "images": self.images}
