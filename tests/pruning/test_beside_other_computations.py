"""These tests compute scores a second time in another way: by autograd, by a plain loop, or by a definition read word by word."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import TwoBlocks

from models import Network, Unit
from pruning import Pruner
from pruning.context import Context, lift
from pruning.granularities import Structured
from pruning.removal import ungated
from settings.registry import CRITERIA


def scored(criterion, network, batch=None, seed=0):
    context = Context(network, Structured.groups, lambda: iter([batch]), seed)
    return lift(CRITERIA.get(criterion))(network.units, context)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 0.99])
def test_nisp_with_a_rate_is_autograd_with_hooks(batch, rate):
    """Gradients of the summed final channels for absolute weights; a hook stops those of the lowest filters of each layer."""
    network = TwoBlocks().double()
    scores = scored(f"NISP(last='equal', rate={rate})", network, batch)
    linear = ungated(network).eval()
    for unit in linear.units.values():
        unit.layer.weight.data.abs_()
        unit.norm = None
    totals, final = {}, {}

    def stop(gradient, name):
        totals[name] = gradient[0].sum((1, 2))
        lowest = sorted(range(len(totals[name])), key=lambda index: float(totals[name][index]))
        going = torch.ones_like(totals[name])
        going[lowest[: math.floor(rate * len(lowest) + 1e-9)]] = 0
        return gradient * going.view(1, -1, 1, 1)

    for name, unit in linear.units.items():
        unit.register_forward_hook(lambda _, __, y, name=name: y.register_hook(lambda g, name=name: stop(g, name)) and None)
    linear.classifier.register_forward_pre_hook(lambda _, x: final.update(x=x[0]))
    linear(torch.ones(1, 3, 8, 8, dtype=torch.float64))
    final["x"].sum().backward()
    assert set(totals) == set(scores)
    for name, total in totals.items():
        torch.testing.assert_close(scores[name], total, msg=name)


def test_random_is_one_stream_of_numbers(two_blocks):
    """Unit after unit, filter after filter, in the order of execution; the k smallest of all go, whichever layer they are in."""
    generator = torch.Generator().manual_seed(5)
    numbers = torch.rand(sum(unit.filters for unit in two_blocks.units.values()), generator=generator)
    pruner = Pruner(two_blocks, criterion="random", scope="global(normalise='none', floor=0)", rate=0.4, seed=5)
    pruner.update(0.4)
    torch.testing.assert_close(torch.cat(list(scored("random", two_blocks, seed=5).values())), numbers, rtol=0, atol=0)
    smallest = set(numbers.argsort()[: math.floor(0.4 * len(numbers))].tolist())
    keep = torch.cat([gate.mask for gate in pruner.gates.values()])
    assert {index for index, value in enumerate(keep.tolist()) if value == 0} == smallest
    assert torch.rand(3, generator=generator).unique().numel() == 3


def searched(network, batch, learn, evaluations, rate=0.4, seed=0, population=64):
    """The search as its papers and their code describe it, on plain lists: the best candidate's scores, without a shift."""
    legr = learn == "scale_and_offset"
    importance = [unit.weight.detach().flatten(1).square().sum(1).pow(1.0 if legr else 0.5) for unit in network.units.values()]
    sizes = [len(scores) for scores in importance]
    spread = [scores.std(correction=0) if legr else torch.cat(importance).std(correction=0) for scores in importance]
    numbers = torch.Generator().manual_seed(seed)

    def fitness(candidate):
        scores = torch.cat([scale * scores + shift for scores, (scale, shift) in zip(importance, candidate, strict=True)])
        keep = torch.ones(len(scores), dtype=torch.bool)
        keep[scores.argsort(stable=True)[: math.floor(rate * len(scores))]] = False
        masked = copy.deepcopy(network).train()
        for unit, mask in zip(masked.units.values(), keep.split(sizes), strict=True):
            unit.gate.set(mask)
        with torch.no_grad():
            return float(F.cross_entropy(masked(batch[0]), batch[1]))

    def draw(layers, parent, step):
        child = list(parent)
        for layer in layers:
            first, second = torch.randn(2, generator=numbers).tolist()
            scale, shift = parent[layer]
            if legr:
                child[layer] = (scale * math.exp(step * first), shift + second * float(spread[layer]))
            else:
                child[layer] = (scale, shift + step * second * float(spread[layer]))
        return child

    everything = [(1.0, 0.0)] * len(importance)
    pool = [(fitness(everything), everything)]
    tried = list(pool)
    for number in range(1, evaluations):
        if legr and number < population:
            child = draw(range(len(importance)), everything, 1.0)
        else:
            rivals = [pool[int(torch.randint(len(pool), (), generator=numbers))] for _ in range(16)]
            layer = int(torch.randint(len(importance), (), generator=numbers))
            child = draw([layer], min(rivals, key=lambda rival: rival[0])[1], 1 - number / (1.25 * evaluations))
        tried.append((fitness(child), child))
        pool.append(tried[-1])
        if len(pool) > population:
            pool.pop(0)
    return [scale * scores + shift for scores, (scale, shift) in zip(importance, min(tried, key=lambda t: t[0])[1], strict=True)]


@pytest.mark.parametrize(("learn", "evaluations"), [("offset", 40), ("scale_and_offset", 100)])
def test_the_search_of_layer_compensated_pruning(two_blocks, batch, learn, evaluations):
    pruner = Pruner(
        two_blocks,
        criterion=f"LcP(learn='{learn}', evaluations={evaluations})",
        scope="global(normalise='none', floor=0)",
        rate=0.4,
    )
    pruner.begin(1, 4, lambda: iter([batch]))
    ours = torch.cat(list(pruner.scores(0.4).values()))
    theirs = torch.cat(searched(two_blocks, batch, learn, evaluations))
    torch.testing.assert_close(ours - ours.min(), theirs - theirs.min(), rtol=1e-5, atol=1e-6)
    plain = torch.cat([unit.weight.detach().flatten(1).norm(dim=1) for unit in two_blocks.units.values()])
    assert not torch.equal(ours.argsort(), plain.argsort())  # something better than the start was met


@pytest.mark.parametrize(("filters", "by_norm", "rate"), [(16, 0.1, 0.4), (32, 0.1, 0.4), (64, 0.1, 0.4), (16, 0.0, 0.4)])
def test_fpgm_mix_cuts_the_counts_that_are_stated(filters, by_norm, rate):
    """0.1 of 16, 32 and 64 filters is 2, 3 and 6, to the nearest; the rest of the rate goes by distance among the others."""

    class Layer(Network):
        def __init__(self):
            super().__init__()
            self.first = Unit(torch.nn.Conv2d(3, filters, 3, bias=False), norm=False)
            self.classifier = Unit(torch.nn.Linear(filters, 2), norm=False, activation=False)
            self.wire("first", "input", "first")
            self.wire("classifier", "first", "output")

    torch.manual_seed(0)
    network = Layer().double()
    pruner = Pruner(network, criterion=f"FPGM(by_norm={by_norm})", scope="local", rate=rate)
    pruner.update(rate)
    rows = network.first.weight.detach().flatten(1)
    count = round(by_norm * filters)
    by_size = rows.norm(dim=1).argsort().tolist()
    small, rest = by_size[:count], by_size[count:]
    distance = {index: sum(float((rows[index] - rows[other]).norm()) for other in rest) for index in rest}
    near = sorted(rest, key=distance.get)[: math.floor(rate * filters) - count]
    assert set((network.first.gate.mask == 0).nonzero().flatten().tolist()) == {*small, *near}
    assert count == {16: 2, 32: 3, 64: 6}[filters] or by_norm == 0
