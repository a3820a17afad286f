"""This file holds the meters, which add up what a task measures over many batches."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tasks.mixing import Mixed


class Losses:
    """A meter that adds up the terms of the loss over the batches that it is shown.

    `first_bad` is the number of the first batch whose loss was not finite, -1 where there was none.
    """

    def __init__(self, device):
        self.terms: dict[str, Tensor] = {}
        self.images = self.steps = 0
        self.first_bad = torch.full((), -1, device=device)

    @torch.no_grad()
    def add(self, outputs, targets: Tensor, terms: dict[str, Tensor]) -> None:
        """Add a batch: the targets, one for each image, and the terms of the loss by name."""
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
        self.terms = {name: self.terms.get(name, torch.zeros((), device=self.first_bad.device)) for name in names}
        for total in (images, *self.terms.values()):
            team.sum_(total)
        team.largest_(self.first_bad)
        self.images = int(images)

    def read(self) -> dict:
        """Return "loss" as the sum of its terms, each term by name, and the images seen."""
        terms = {name: float(total) / self.images for name, total in self.terms.items()}
        return {"loss": sum(terms.values()), **terms, "images": self.images}


class Accuracy(Losses):
    """A meter of classification adds up accuracies and the terms of the loss over the batches that it is shown.

    Given the names of the `classes`, it also counts which class was taken for which.
    """

    def __init__(self, device, classes: Sequence[str] = ()):
        super().__init__(device)
        self.classes = list(classes)
        self.taken_for = torch.zeros(len(classes), len(classes), device=device)
        self.ranked = torch.zeros(2, device=device)

    @torch.no_grad()
    def add(self, outputs: Tensor, targets: Tensor, terms: dict[str, Tensor]) -> None:
        """Add a batch: logits (images, classes), labels (images,), and the terms of the loss by name.

        Of a pair, labels and pseudo-labels, the first images count. Of mixed images each label is a hit by its share.
        """
        if isinstance(targets, tuple):
            targets, outputs = targets[0], outputs[: len(targets[0])]
        best = outputs.topk(min(5, outputs.shape[1])).indices
        if isinstance(targets, Mixed):
            hits = targets.mean(*((best == labels[:, None]).float() for labels in (targets.labels, targets.others)))
        else:
            hits = best == targets[:, None]
        if self.classes:
            ones = torch.ones(len(targets), device=targets.device)
            self.taken_for.view(-1).index_add_(0, targets * len(self.classes) + best[:, 0], ones)
        self.ranked += torch.stack([hits[:, 0].sum(), hits.sum()])
        super().add(outputs, targets, terms)

    def gather(self, team) -> None:
        """Add up the sums of all processes of the team; call it before the last `read`."""
        super().gather(team)
        for total in (self.ranked, *([self.taken_for] if self.classes else [])):
            team.sum_(total)

    def read(self) -> dict:
        """Return top-1 and top-5 accuracy in %, "loss" as the sum of its terms, each term by name, and the images seen.

        With names of classes also "classes", {name: [accuracy in %, images]} with the worst one first, and "confusions",
        {name: {what it was taken for: images}}, the commonest mistake of each class first.
        """
        top1, top5 = (100 * (total / self.images) for total in self.ranked.tolist())
        read = {"top1": top1, "top5": top5, **super().read()}
        return read | self._by_class() if self.classes else read

    def _by_class(self) -> dict:
        """Return the accuracy of each class that has images, and what its images were taken for."""
        table, names = self.taken_for.long().cpu(), self.classes
        rows = zip(names, table.diagonal().tolist(), table.sum(1).tolist(), strict=True)
        accuracies = sorted(
            ([100 * right / images, images, name] for name, right, images in rows if images), key=lambda row: row[0]
        )
        mistakes = {}
        for name, row in zip(names, (table - table.diagonal().diag()).tolist(), strict=True):
            taken = sorted(((-images, number) for number, images in enumerate(row) if images))
            if taken:
                mistakes[name] = {names[number]: -images for images, number in taken}
        return {"classes": {name: [accuracy, images] for accuracy, images, name in accuracies}, "confusions": mistakes}
