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
    sample, (samples,). Where a bias or batch norm is behind the product, it may give a `constant` to each filter.
    """

    weight: Tensor
    inputs: Tensor
    wanted: Tensor
    drawn: Tensor
    constant: bool = False

    def missing(self, keep: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the product by a weight lacks, (samples, filters), once the constants are added, and these, (filters,)."""
        lacks = self.wanted - self.product(keep, weight)
        constants = lacks.mean(0) if self.constant else torch.zeros_like(lacks[0])
        return lacks - constants, constants

    def product(self, keep: Tensor, weight: Tensor) -> Tensor:
        """Return the product of the channels that stay, (samples, filters), by a `weight` of its own weight's shape."""
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
        columns, (lacks, _) = self.inputs[:, keep].flatten(1), self.missing(keep, self.weight)
        # with constants of their own filters are fitted to what varies
        change = nearest_change(columns - columns.mean(0) if self.constant else columns, lacks)
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
    live = columns.abs().amax(0) > 0
    if 0 < int(live.sum()) <= len(columns):
        # by complete orthogonal factorisation, which finds the rank
        change[live] = torch.linalg.lstsq(columns[:, live], missing, driver="gelsy").solution
    return change


def folded(unit: Unit) -> Tensor:
    """Return the weights and the bias of each filter of a unit, batch norm of evaluation folded in: (filters, weights + 1)."""
    weight, norm = unit.weight.detach().double().cpu().flatten(1), unit.norm
    bias = torch.zeros_like(weight[:, 0]) if unit.layer.bias is None else unit.layer.bias.detach().double().cpu()
    if norm is not None:
        scale, shift, mean, variance = (
            value.detach().double().cpu() for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        )
        scale = scale / torch.sqrt(variance + norm.eps)
        weight, bias = weight * scale[:, None], (bias - mean) * scale + shift
    return torch.cat([weight, bias[:, None]], 1)


def put(
    unit: Unit, original: Unit, filters: Tensor, weight: Tensor, constant: Tensor, left: Tensor, product: Tensor, before: Tensor
) -> None:
    """Give filters of a unit a new weight and constant, times `left` behind them, and batch norm the statistics of the product.

    `weight` is (filters, channels, patch), `constant` (filters,), and `product` what the weight gives at the samples,
    (samples, filters); `before` is the product there of the `original`, the unit before the cut. In evaluation the unit then
    gives left * (product + constant), and what the original gives for the product 0. In training, where batch norm has the
    statistics of the batch, it gives nearly the same, and filters keep their length, on which the size of a step depends. A
    unit without batch norm takes the weight as it is, and adds the constant to its bias.
    """
    where, norm = filters.to(unit.weight.device), unit.norm

    def of(value: Tensor | None) -> Tensor:
        return torch.zeros_like(left) if value is None else value.detach()[where].double().cpu()

    size, bias, was = torch.ones_like(left), of(original.layer.bias), original.norm
    if norm is None:
        if unit.layer.bias is not None:
            unit.layer.bias[where] = (bias + constant).to(unit.layer.bias)
    else:
        lengths = weight.flatten(1).norm(dim=1) / of(unit.weight).flatten(1).norm(dim=1)
        size = torch.where((lengths > 0) & lengths.isfinite(), lengths, size)
        centre, variance = of(was.running_mean) - bias, of(was.running_var)
        shift = of(was.bias) - of(was.weight) / torch.sqrt(variance + norm.eps) * centre
        product, scale = product / size, left * size
        # the ratio to what the same places gave before: they are not all that batch norm saw
        grown, earlier = product.var(0, correction=0), before.var(0, correction=0)
        variance = torch.where(earlier > 0, variance * grown / earlier, grown)
        centre = centre + product.mean(0) - before.mean(0)
        new = {
            norm.running_mean: centre + of(unit.layer.bias),
            norm.running_var: variance,
            norm.weight: scale * torch.sqrt(variance + norm.eps),
            norm.bias: shift + left * constant + scale * centre,
        }
        for tensor, values in new.items():
            tensor[where] = values.to(tensor)
    unit.weight[where] = (weight / size[:, None, None]).view_as(unit.weight[where]).to(unit.weight)


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
