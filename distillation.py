"""This file holds the losses by which a teacher teaches its student, of which `--distill` chooses one or several.

Each maps what is seen of both networks on a batch (`Seen` in models/seen.py) to a scalar that is added to the loss. The
logits, maps and embeddings of the teacher have no gradient. A loss with parameters of its own is a class: it is made from
what both networks show of one image, and then called as the others are; the optimiser trains its parameters too. `reads`
says of those that read the student's channels, {parameter: (dimension, number of the map)}, so that they are cut with it.

All are computed in float32, or in float64 where that is what comes in. The default weights are those of the authors or of
RepDistiller (Tian, Krishnan and Isola, 2020, arXiv 1910.10699). With several processes each compares the images of its own
part of a batch.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.numerics import precise
from models.seen import Seen


def KD(
    student: Seen,
    teacher: Seen,
    *,
    temperature: Annotated[float, "above 0"] = 4.0,
    weight: Annotated[float, "at most 1", "rest is the task's"] = 0.9,
) -> Tensor:
    """Knowledge distillation, the teacher's softened probabilities: Hinton et al., 2015 (arXiv 1503.02531).

    weight x T^2 x KL(softmax(z_t / T) || softmax(z_s / T)), summed over classes and averaged over images only. The terms of
    the task, such as cross-entropy, are multiplied by 1 - weight.
    """
    soft, own = (F.log_softmax(precise(seen.logits) / temperature, 1) for seen in (teacher, student))
    return weight * temperature**2 * F.kl_div(own, soft, reduction="batchmean", log_target=True)


def DKD(
    student: Annotated[Seen, "true class"],
    teacher: Seen,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: Annotated[float, "above 0"] = 4.0,
    warmup: float = 20.0,
) -> Tensor:
    """Decoupled distillation: Zhao et al., 2022 (arXiv 2203.08679).

    T^2 (alpha x KL between [p, 1 - p], p the probability of the true class, + beta x KL between the probabilities of the
    other classes among themselves), averaged over images; in epoch e, counted from 1, times min(e / warmup, 1).
    """
    own = student.targets.unsqueeze(1)
    true = F.one_hot(student.targets, student.logits.shape[1]).bool()
    parts = []
    for seen in (teacher, student):
        scaled = precise(seen.logits) / temperature
        every = F.log_softmax(scaled, 1)
        others = scaled.masked_fill(true, -torch.inf)
        both = torch.cat([every.gather(1, own), every.masked_fill(true, -torch.inf).logsumexp(1, keepdim=True)], 1)
        parts.append((both, F.log_softmax(others, 1).masked_fill(true, 0.0)))
    (both_t, others_t), (both_s, others_s) = parts
    target = (both_t.exp() * (both_t - both_s)).sum(1).mean()
    rest = (others_t.exp() * (others_t - others_s)).sum(1).mean()
    risen = (student.epoch / warmup).clamp(max=1) if warmup else 1.0
    return risen * temperature**2 * (alpha * target + beta * rest)


class FitNet(nn.Module):
    """Hints, a map of the teacher guessed from the student's by a regressor: Romero et al., 2015 (arXiv 1412.6550).

    weight x mean (r(F_s) - F_t)^2, at the end of stage number `stage`. r is a convolution, batch norm by the batch's
    statistics, and a ReLU; the convolution goes from the student's size of map to the teacher's: 3x3 with stride 2, a
    transposed 4x4, or one without padding; a larger map of the teacher is pooled first where none of them fits. ValueError
    where the networks have fewer stages in common.
    """

    def __init__(
        self,
        student: Annotated[Seen, "maps"],
        teacher: Seen,
        *,
        weight: float = 100.0,
        stage: Annotated[int, "at least 1"] = 2,
    ):
        super().__init__()
        if stage > len(student.maps):
            raise ValueError(f"there is no stage {stage}: the networks have {len(student.maps)} in common")
        self.weight, self.number = weight, stage - 1
        own, wanted = student.maps[self.number], teacher.maps[self.number]
        inputs, outputs, side, aim = own.shape[1], wanted.shape[1], own.shape[-1], wanted.shape[-1]
        self.side = None
        if side == 2 * aim:
            self.regressor = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        elif 2 * side == aim:
            self.regressor = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
        else:
            self.side = min(side, aim)
            self.regressor = nn.Conv2d(inputs, outputs, 1 + side - self.side, bias=False)
        self.norm = nn.BatchNorm2d(outputs, track_running_stats=False)
        self.reads = {"regressor.weight": (0 if isinstance(self.regressor, nn.ConvTranspose2d) else 1, self.number)}

    def forward(self, student: Seen, teacher: Seen) -> Tensor:
        own, wanted = student.maps[self.number], precise(teacher.maps[self.number])
        if self.side is not None:
            wanted = F.adaptive_avg_pool2d(wanted, self.side)
        # the regressor is a part of the student, whose precision it has
        with torch.autocast(own.device.type, torch.bfloat16, enabled=own.dtype == torch.bfloat16):
            guessed = F.relu(self.norm(self.regressor(own)))
        return self.weight * F.mse_loss(precise(guessed), wanted)


def AT(
    student: Annotated[Seen, "maps"],
    teacher: Seen,
    *,
    weight: float = 1000.0,
    power: Annotated[float, "above 0"] = 2.0,
    form: Literal["code", "paper"] = "code",
) -> Tensor:
    """Attention transfer, where the maps of each stage are large: Zagoruyko and Komodakis, 2017 (arXiv 1612.03928).

    Q = the mean over channels of |F|^power, as a vector of length 1 for each image; of two sizes the larger map is pooled.
    The form of the authors' 'code' is weight x sum over stages of mean (Q_s - Q_t)^2; that of the 'paper' is weight / 2 x
    sum over stages of ||Q_s - Q_t||, divided by the number of positions and averaged over images.
    """
    terms = []
    for own, wanted in zip(student.maps, teacher.maps, strict=True):
        side = min(own.shape[-1], wanted.shape[-1])
        own, wanted = (_attention(F.adaptive_avg_pool2d(precise(maps), side), power) for maps in (own, wanted))
        if form == "code":
            terms.append((own - wanted).square().mean())
        else:
            terms.append(torch.linalg.vector_norm(own - wanted, dim=1).mean() / (2 * own.shape[1]))
    return weight * torch.stack(terms).sum()


def _attention(maps: Tensor, power: float) -> Tensor:
    """Return each image's map of attention as a vector of length 1, (images, positions)."""
    return F.normalize((maps.square() if power == 2 else maps.abs().pow(power)).sum(1).flatten(1))


def RKD(student: Annotated[Seen, "features"], teacher: Seen, *, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    """Relations between the embeddings of a batch's images: Park et al., 2019 (arXiv 1904.05068).

    distance x the mean over pairs of Huber(psi_s - psi_t), psi = ||e_i - e_j|| divided by the mean of those that are not 0;
    + angle x the mean over triples of Huber(cos_s - cos_t), the cosine at e_i between the directions to e_j and e_k, 0 where
    two of them are one point. Huber is squared / 2 up to 1.
    """
    (lengths_s, cosines_s), (lengths_t, cosines_t) = (_relations(precise(seen.embedding)) for seen in (student, teacher))
    return distance * F.smooth_l1_loss(lengths_s, lengths_t) + angle * F.smooth_l1_loss(cosines_s, cosines_t)


def _relations(points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distances between points over their mean, (n, n), and the cosines of all angles, (n, n, n)."""
    differences = points.unsqueeze(0) - points.unsqueeze(1)
    squares = differences.square().sum(2)
    apart = squares > 1e-12
    # the square root has no derivative at 0
    lengths = torch.where(apart, squares, 1.0).sqrt()
    directions = differences * (apart / lengths).unsqueeze(2)
    lengths = lengths * apart
    return lengths / (lengths.sum() / apart.sum().clamp_min(1)).clamp_min(1e-12), directions @ directions.mT


def SP(student: Annotated[Seen, "features"], teacher: Seen, *, weight: float = 3000.0) -> Tensor:
    """Similarity-preserving distillation, which images have like activations: Tung and Mori, 2019 (arXiv 1907.09682).

    weight x ||G_s - G_t||_F^2 / images^2, where G = A A^T with rows of length 1, and A the last feature map, a row an image.
    """
    own, wanted = (precise(seen.last).flatten(1) for seen in (student, teacher))
    own, wanted = (F.normalize(rows @ rows.mT) for rows in (own, wanted))
    return weight * (own - wanted).square().mean()
