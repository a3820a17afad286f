"""This benchmark prunes networks to half their MACs, by this repository and by torch-pruning, and compares the two.

`python benchmarks/beside_torch_pruning.py`, after `pip install torch-pruning`, which is no dependency of ours: ResNet-56. With
`--adopted resnet18 mobilenet_v2` they are networks of torchvision, which this repository adopts. Both cut by the L1 norm with
one threshold, from the same weights with random batch norm. "masked" is the whole network with the cut filters' outputs set
to 0.
"""

import argparse
import copy
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import models
from deploy.latency import alternate
from pruning import Pruner, accounting
from pruning.removal import Removal, ungated
from settings.errors import guard


class Block(nn.Module):
    """A residual block of ours, made of layers that torch-pruning can trace."""

    def __init__(self, source):
        super().__init__()
        self.conv1, self.bn1 = copy.deepcopy(source.conv1.layer), copy.deepcopy(source.conv1.norm)
        self.conv2, self.bn2 = copy.deepcopy(source.conv2.layer), copy.deepcopy(source.conv2.norm)
        self.shortcut = None
        if source.projection is not None:
            self.shortcut = nn.Sequential(copy.deepcopy(source.projection.layer), copy.deepcopy(source.projection.norm))

    def forward(self, x):
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(branch + (x if self.shortcut is None else self.shortcut(x)))


class Plain(nn.Module):
    """A CIFAR ResNet of ours with the same weights, made of layers that torch-pruning can trace."""

    def __init__(self, source):
        super().__init__()
        self.conv, self.bn = copy.deepcopy(source.stem.layer), copy.deepcopy(source.stem.norm)
        self.blocks = nn.Sequential(*(Block(block) for stage in (source.stage1, source.stage2, source.stage3) for block in stage))
        self.linear = copy.deepcopy(source.classifier.layer)

    def forward(self, x):
        return self.linear(self.blocks(F.relu(self.bn(self.conv(x)))).mean((2, 3)))


def ours(whole, images, residual, target, clock=time.perf_counter):
    """Prune a copy of `whole` to the fraction `target` of its MACs by this repository.

    Returns the smaller network, its counts, the seconds for choosing and for removing filters, and how far its outputs on
    `images` are from those of the masked network.
    """
    network = copy.deepcopy(whole)
    began = clock()
    pruner = Pruner(network, rate=1 - target, budget="macs", residual=residual)
    pruner.update(1 - target)
    chosen = clock()
    smaller = Removal(network.eval()).compact()
    removed = clock()
    return (
        smaller,
        accounting.dense(smaller, images.shape[-1]),
        chosen - began,
        removed - chosen,
        apart(network(images), smaller(images)),
    )


def apart(masked, removed):
    """The largest difference of two networks' outputs, as a fraction of the largest output."""
    return (masked - removed).abs().max() / masked.abs().max()


def theirs(make, images, target, clock=time.perf_counter):
    """Prune what `make` makes by torch-pruning to the same MACs, by bisection of its rate; only the last cut is timed.

    Returns the smaller network, the masked one, MACs, parameters, and the seconds for building and for pruning.
    """
    import torch_pruning as tp

    def prune(rate):
        """What `theirs` returns, at this rate."""
        with torch.enable_grad():
            model = make().eval()
            last = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)][-1]
            began = clock()
            pruner = tp.pruner.MagnitudePruner(
                model,
                images[:1],
                importance=tp.importance.MagnitudeImportance(p=1),
                global_pruning=True,
                pruning_ratio=rate,
                ignored_layers=[last],
            )
            built = clock()
            masked = make().eval()
            names, zeroed = {module: name for name, module in model.named_modules()}, []
            for group in pruner.step(interactive=True):
                for dependency, indices in group:
                    if isinstance(dependency.target.module, nn.BatchNorm2d):
                        zeroed.append((names[dependency.target.module], indices))
                group.prune()
            done = clock()
            for name, indices in zeroed:
                norm = masked.get_submodule(name)
                if len(norm.weight) == len(set(indices)) or max(indices) >= len(norm.weight):
                    continue
                norm.weight.data[indices] = 0
                norm.bias.data[indices] = 0
        macs, parameters = tp.utils.count_ops_and_params(model, images[:1])
        return model, masked, macs, parameters, built - began, done - built

    low, high = 0.0, 0.9
    aim = target * tp.utils.count_ops_and_params(make().eval(), images[:1])[0]
    for _ in range(9):
        middle = (low + high) / 2
        low, high = (middle, high) if prune(middle)[2] > aim else (low, middle)
    return prune(high)


HEAD = "network | by | adopt, CPU s | parameters | MACs | choose, CPU s | remove, CPU s | masked - removed, of the largest output"


def settle(norms):
    """Draw what batch norm could have after training."""
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
        nn.init.uniform_(norm.running_mean, -0.5, 0.5)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)


@torch.no_grad()
def beside(name, size, target):
    """Yield the rows of one network of torchvision: ours, for both kinds of streams, and theirs, or why there is none."""
    torch.manual_seed(0)
    options = {"init_weights": True} if name == "googlenet" else {}
    module = getattr(torchvision.models, name)(num_classes=10, **options).eval()
    settle(part for part in module.modules() if isinstance(part, nn.BatchNorm2d))
    images = torch.randn(8, 3, size, size)
    clock = time.process_time  # which other work on the machine does not lengthen
    began = clock()
    try:
        whole = models.adopt(module, images)
    except ValueError as error:
        yield f"ours | refused: {error} | | | | |"
    else:
        adopting = clock() - began
        for residual in ("grouped", "free"):
            _, count, choosing, removing, difference = ours(whole, images, residual, target, clock)
            row = f"{count.parameters} | {count.macs} | {choosing:.2f} | {removing:.2f} | {difference:.1e}"
            yield f"ours, {residual} | {adopting:.2f} | {row}"
    try:
        model, masked, macs, parameters, building, pruning = theirs(lambda: copy.deepcopy(module), images, target, clock)
    except Exception as error:
        yield f"torch-pruning | {type(error).__name__}: {' '.join(str(error).split())[:80]} | | | | |"
    else:
        # what its cut filters gave is taken away at batch norm; without that there is no masked network to compare with
        masks = any(isinstance(part, nn.BatchNorm2d) for part in module.modules())
        difference = f"{apart(masked(images), model(images)):.1e}" if masks else "not comparable: no batch norm"
        yield f"torch-pruning | | {parameters} | {int(macs)} | {building:.2f} | {pruning:.2f} | {difference}"


def main() -> None:
    """Prune by both, time all forms in turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--left", type=float, default=0.5, help="fraction of the MACs (default 0.5)")
    parser.add_argument("--adopted", nargs="+", metavar="NAME", help="networks of torchvision instead, not timed in use")
    parser.add_argument("--size", type=int, default=64, help="of --adopted: pixels of a side (default 64)")
    options = parser.parse_args()
    if options.adopted:
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, {options.size} pixels, 10 classes\n")
        print(f"| {HEAD} |\n|" + "---|" * (HEAD.count("|") + 1))
        for name in options.adopted:
            for line in beside(name, options.size, options.left):
                print(f"| {name} | {line} |", flush=True)
        return
    torch.manual_seed(0)
    whole = models.build("resnet56").eval()
    settle(unit.norm for unit in whole.units.values())
    images = torch.randn(128, 3, 32, 32)
    forms, lines = {"dense": ungated(whole)}, []
    with torch.no_grad():
        for residual in ("grouped", "free"):
            smaller, count, choosing, removing, difference = ours(whole, images, residual, options.left)
            forms[f"ours, {residual}"] = smaller
            lines.append((f"ours, {residual}", count.parameters, count.macs, choosing, removing, difference))
        model, masked, macs, parameters, building, pruning = theirs(lambda: Plain(whole), images, options.left)
        forms["torch-pruning"] = model
        lines.append(("torch-pruning", parameters, int(macs), building, pruning, apart(masked(images), model(images))))
        laid_out = {name: form.eval().to(memory_format=torch.channels_last) for name, form in forms.items()}
        took = {}
        for batch in (1, 128):
            x = images[:batch].contiguous(memory_format=torch.channels_last)
            took[batch] = alternate({name: lambda form=form, x=x: form(x) for name, form in laid_out.items()}, fewest=20)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, batch norm not folded\n")
    print(
        "| | parameters | MACs | choose s | remove s | masked - removed, of the largest output | batch 1, ms | batch 128, ms |\n|"
        + "---|" * 8
    )
    print(f"| dense | | | | | | {1e3 * took[1]['dense']:.2f} | {1e3 * took[128]['dense']:.1f} |")
    for name, parameters, macs, choosing, removing, difference in lines:
        print(
            f"| {name} | {parameters} | {macs} | {choosing:.2f} | {removing:.2f} | {difference:.1e} "
            f"| {1e3 * took[1][name]:.2f} | {1e3 * took[128][name]:.1f} |"
        )


if __name__ == "__main__":
    with guard("beside_torch_pruning.py"):
        main()
