"""This file solves for the weights of a reader, a layer that reads channels of which some are cut, from what it saw."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import Unit


@dataclass
class Reader:
    """A reader is a layer together with what it reads at sampled places of its output, all in float64 on the CPU.

    `inputs` are the windows that it reads there, (samples, channels, patch), and `wanted` what its product should be,
    without bias, (samples, filters); its `weight` is (filters, channels, patch). `drawn` is a filter at random for each
    sample, (samples,).
    """

    weight: Tensor
    inputs: Tensor
    wanted: Tensor
    drawn: Tensor

    def product(self, keep: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the product of the channels that stay, (samples, filters), by another `weight` than its own if one is given."""
        weight = self.weight if weight is None else weight
        return self.inputs[:, keep].flatten(1) @ weight[:, keep].flatten(1).T

    def terms(self) -> tuple[Tensor, Tensor]:
        """Return what each channel adds to the product at each sample's drawn filter, (samples, channels), and what is wanted.

        Without anything cut the terms of a sample add up to the product.
        """
        terms = (self.inputs * self.weight[self.drawn]).sum(-1)
        return terms, self.wanted.gather(1, self.drawn[:, None])[:, 0]

    def solved(self, keep: Tensor) -> Tensor:
        """Return the weight by which the channels that stay come nearest to what is wanted, in the sum of squares.

        Of all such weights it is the one that is nearest to the weight so far, so that what no sample tells stays as it is.
        """
        change = nearest_change(self.inputs[:, keep].flatten(1), self.wanted - self.product(keep))
        weight = self.weight.clone()
        weight[:, keep] += change.T.reshape(len(weight), -1, weight.shape[2])
        return weight


def nearest_change(columns: Tensor, missing: Tensor) -> Tensor:
    """Solve columns @ change = missing by least squares, with the smallest change, (columns, ...).

    `columns` is (samples, columns), `missing` (samples, ...). A column of zeros, which a dead channel gives, has no change;
    nothing changes where there are fewer samples than other columns, and what was solved would fit these samples alone.
    """
    missing = missing if missing.dim() > 1 else missing[:, None]
    change = columns.new_zeros(columns.shape[1], missing.shape[1])
    live = (columns != 0).any(0)
    if 0 < int(live.sum()) <= len(columns):
        # by complete orthogonal factorisation, which finds the rank
        change[live] = torch.linalg.lstsq(columns[:, live], missing, driver="gelsy").solution
    return change


def put(unit: Unit, filters: Tensor, weight: Tensor, left: Tensor, product: Tensor, before: Tensor) -> None:
    """Give filters of a unit a new weight, times `left` behind it, and batch norm the statistics of the new product.

    `weight` is (filters, channels, patch) and `product` what it gives at the samples, (samples, filters); `before` is the
    product there before the cut. In evaluation the unit then gives left * product, and otherwise what it gave. In training,
    where batch norm has the statistics of the batch, it gives nearly the same, and filters have the length that they had,
    on which the size of a step depends. A unit without batch norm takes the weight as it is.
    """
    where = filters.to(unit.weight.device)
    old, norm = unit.weight[where].double().cpu(), unit.norm
    size = torch.ones_like(left)
    if norm is not None:
        lengths = weight.flatten(1).norm(dim=1) / old.flatten(1).norm(dim=1)
        size = torch.where((lengths > 0) & lengths.isfinite(), lengths, size)
        scale, mean, variance = (
            value.detach()[where].double().cpu() for value in (norm.weight, norm.running_mean, norm.running_var)
        )
        scale = scale / torch.sqrt(variance + norm.eps)
        shift, product = norm.bias.detach()[where].double().cpu() - scale * mean, product / size
        # the ratio to what the same places gave before: they are not all that batch norm saw
        grown, all_before = product.var(0, correction=0), before.var(0, correction=0)
        variance = torch.where(all_before > 0, variance * grown / all_before, grown)
        mean, scale = mean + product.mean(0) - before.mean(0), left * size
        norm.running_mean[where], norm.running_var[where] = mean.to(norm.running_mean), variance.to(norm.running_var)
        norm.weight[where] = (scale * torch.sqrt(variance + norm.eps)).to(norm.weight)
        norm.bias[where] = (shift + scale * mean).to(norm.bias)
    unit.weight[where] = (weight / size[:, None, None]).view_as(old).to(unit.weight)


def windows(layer: nn.Conv2d | nn.Linear, x: Tensor, places: Tensor) -> Tensor:
    """Return what a layer reads of its input at places of its output, (images * places, channels, patch).

    `places` are the numbers of output pixels, row by row, (images, places), of the first so many images of `x`; a linear
    layer has one, number 0.
    """
    x = x[: len(places)]
    if isinstance(layer, nn.Linear):
        return x[:, None].expand(-1, places.shape[1], -1).flatten(0, 1)[..., None]
    (height, width), (down, right) = layer.kernel_size, layer.padding
    padded = F.pad(x, (right, right, down, down))
    gap, step = layer.dilation, layer.stride
    columns_out = (padded.shape[3] - gap[1] * (width - 1) - 1) // step[1] + 1
    rows = (places // columns_out * step[0])[..., None] + torch.arange(height, device=x.device) * gap[0]
    columns = (places % columns_out * step[1])[..., None] + torch.arange(width, device=x.device) * gap[1]
    image = torch.arange(len(x), device=x.device)[:, None, None, None]
    read = padded[image, :, rows[..., :, None], columns[..., None, :]]
    return read.flatten(0, 1).permute(0, 3, 1, 2).flatten(2)


def values_at(maps: Tensor, places: Tensor, channels: int) -> Tensor:
    """Return the values of maps, (images, channels, height, width), at such places: (images * places, channels).

    Channels that the maps do not have are 0.
    """
    flat = maps[: len(places)].flatten(2)
    values = flat.gather(2, places[:, None].expand(-1, flat.shape[1], -1)).transpose(1, 2).flatten(0, 1)
    return F.pad(values, (0, channels - values.shape[1]))
