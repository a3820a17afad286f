"""This file makes the record of a run: what config.json says, a row for each epoch, and the result for summary.json."""

import math
import platform
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torchvision

from pruning import accounting
from pruning.collapse import collapse
from pruning.dropout import dropout_rates
from pruning.removal import is_exact
from runs.records import best_row
from settings.arguments import Settings
from settings.meaning import gate_that_learns, takes_masks_of, zero_filters
from settings.registry import parse_call
from settings.saved import counted
from training.earlier_networks import network_named
from training.experiment import Experiment
from training.turns import images_of


@dataclass
class Row:
    """A row tells what came of one epoch; metrics.jsonl has a line for each.

    `train` and `valid` are the task's measures, the metric first. `pruning` is empty in a dense run; otherwise, also where a
    regulariser sets filters to 0, it holds the weights under a mask and all weights (num_zero, num_total), the mask entries
    that are 0 (cut), those that moved in this epoch (mask_changes), of filters those that returned, left, and are cut without
    a gradient (not_learning), and the filters kept in each layer (kept_filters). Once filters have been taken out they count
    as cut, and the fractions of the whole network's parameters and MACs that are left are told (parameters_left, macs_left).
    """

    epoch: int
    stage: str
    train: dict
    valid: dict
    learning_rate: float
    seconds: float
    images_per_second: float
    pruning: dict = field(default_factory=dict)

    @classmethod
    def of(cls, run: Experiment, epoch: int, trained: dict, valid: dict, seconds: float) -> "Row":
        """The row of the epoch that a run has just ended."""
        first = run.first_step(epoch)
        rate, images = run.learning_rate(epoch, first), images_of(run, first)
        row = cls(epoch, run.now.name, trained, valid, rate, round(seconds, 3), round(images / seconds, 1))
        names = ("num_zero", "num_total", "cut", "kept_filters")
        if run.networks.last is not None:
            row.pruning = dict(run.networks.last.pruning)
        elif run.pruner is not None:
            zero, total, kept = under_masks(run)
            row.pruning = dict(zip(names, (zero, total, run.pruner.cut(), kept), strict=True)) | run.pruner.take_moves()
        elif zero_filters(run.settings) and "removal" not in run.results:
            row.pruning = dict(zip(names, at_zero(run), strict=True))
            row.pruning |= dict.fromkeys(("mask_changes", "returned", "left", "not_learning"), 0)
        elif run.settings.pruning.prune_type != "none" or zero_filters(run.settings):
            row.pruning = dict(zip(names, taken_out(run), strict=True)) | shares_left(run)
            row.pruning |= dict.fromkeys(("mask_changes", "returned", "left", "not_learning"), 0)
        return row

    def plain(self) -> dict:
        """The row as plain values; those of `pruning` stand among the others."""
        values = asdict(self)
        return values | values.pop("pruning")


@dataclass
class Result:
    """A result tells what came of a run; summary.json holds it.

    `last` and `best` are rows; a run that has trained nothing has none, but `valid`, the measures where runs are validated.
    `test` are the measures on the test images. `dense` counts filters, parameters and MACs of the
    whole network, `left` those that remain. `removable` says whether what is masked can be taken out, `exact` whether that
    leaves the outputs as they are. `weights` tells, where single weights or kernels are cut, how many weights of each layer
    that could be cut are not zero, and how many there are; `dropout` the rates of each layer that has dropout, as it was made
    and as it was at the end. `architecture` counts the whole network of --arch where the run began with a smaller one, and is
    None otherwise. `actions` holds what the actions returned, and the settings that they used.
    """

    last: dict | None
    best: dict | None
    valid: dict | None
    test: dict
    dense: dict
    left: dict
    seconds: float
    held_out: bool
    removable: bool
    exact: bool
    weights: dict
    dropout: dict
    architecture: dict | None
    actions: dict

    @classmethod
    def of(cls, run: Experiment, rows: list[dict], test: dict) -> "Result":
        """The result of a run that has ended; `test` are its measures on the test images."""
        settings = run.settings
        whole = run.pruner is None and ("removal" in run.results or not zero_filters(settings))
        count = accounting.dense if whole else accounting.remaining
        of_pieces = run.pruner is not None and not run.pruner.granularity.removable
        used = {name: settings.flat[name] for name in ("epochs", "recalibrate", "finetune_lr")}
        return cls(
            rows[-1] if rows else None,
            best_row(rows, run.task.metric) if rows else None,
            None if rows else run.evaluate(run.task.valid or run.task.test),
            test,
            asdict(run.whole),
            asdict(count(run.model, run.task.inputs[1])),
            round(sum(row["seconds"] for row in rows), 1),
            run.task.valid is not None,
            run.pruner is None or run.pruner.granularity.removable,
            is_exact(run.model),
            accounting.connections(run.pruner.units) if of_pieces else {},
            dropout_rates(run.model),
            architecture_of(run),
            used | run.results | ({} if run.pruner is None else {"collapse": collapse(run.model)}),
        )

    def plain(self) -> dict:
        """The result as plain values, of which a run has some; those of `actions` stand among the others."""
        values = asdict(self)
        values = {name: value for name, value in values.items() if value is not None or name == "architecture"}
        return values | values.pop("actions")


def architecture_of(run: Experiment) -> dict | None:
    """Count the filters, parameters and MACs of the whole network of --arch; None where the run began with that."""
    channels, size, _ = run.task.inputs
    options = {"classes": run.task.outputs, "channels": channels, "size": size}
    with torch.device("meta"):
        network = network_named(run.networks.arch, run.whole_shapes, **options)
    whole = accounting.dense(network, size)
    return None if whole == run.whole else asdict(whole)


def under_masks(run: Experiment) -> tuple[int, int, dict[str, int]]:
    """The weights under a mask, all weights, and the filters kept in each layer."""
    return *accounting.zeros(run.model), accounting.kept_filters(run.model)


def at_zero(run: Experiment) -> tuple[int, int, int, dict[str, int]]:
    """Of filters that the regulariser has set to 0: their weights, all weights, their number, and the filters that are left."""
    units, alive = run.model.units, accounting.filter_masks(run.model, masks_read=True)
    gone = {name: int((~alive[name]).sum()) for name in units}
    weights = sum(count * units[name].weight[0].numel() for name, count in gone.items() if count)
    return weights, run.whole.parameters, sum(gone.values()), {name: int(mask.sum()) for name, mask in alive.items()}


def taken_out(run: Experiment) -> tuple[int, int, int, dict[str, int]]:
    """Of filters that have been taken out: their weights, all weights, their number, and the filters left in each layer."""
    whole, units = run.whole_shapes["units"], run.model.units
    left = {name: (unit.filters, unit.weight.shape[2:].numel()) for name, unit in units.items() if name in whole}
    for name in run.model.factors.keys() & whole.keys():  # the last factor has the layer's filters
        chain = run.model.get_submodule(name)
        if f"{name}.last" in units:
            left[name] = (chain.last.filters, math.prod(factor.weight.shape[2:].numel() for factor in chain))
    gone = {name: whole[name][0] - filters for name, (filters, _) in left.items()}
    weights = sum(count * whole[name][1] * left[name][1] for name, count in gone.items())
    return weights, run.whole.parameters, sum(gone.values()), {name: filters for name, (filters, _) in left.items()}


def shares_left(run: Experiment) -> dict[str, float]:
    """The fractions of the whole network's parameters and MACs that the network has, under masks what removal would leave."""
    left = accounting.remaining(run.model, run.task.inputs[1])
    shares = {name: getattr(left, name) / getattr(run.whole, name) for name in ("parameters", "macs")}
    return {f"{name}_left": round(share, 6) for name, share in shares.items()}


def config(run: Experiment) -> dict:
    """What config.json says beside the command: every setting resolved, the plan, filters per layer, versions, device."""
    cuda, last = run.engine.device == "cuda", run.networks.last
    typed = {"typed": run.settings.typed, "resume": None, "compile": run.engine.compile}
    return {
        "settings": counted(run.settings.flat | typed),
        "plan": run.plan.record(),
        "metric": run.task.metric,
        "data": run.task.record(),
        "teacher": None if run.teaching is None else run.teaching.file,
        "filters": last.filters if last else {name: unit.filters for name, unit in run.model.units.items()},
        "prunable": last.prunable if last else run.pruner.entries if run.pruner else 0,
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__, "numpy": np.__version__},
        "device_name": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "processes": run.team.size,
    }


def run_name(settings: Settings) -> str:
    """The default name of a run's folder, such as resnet50-structured-0.6-reg_cov."""
    network, pruning = settings.network, settings.pruning
    kind = next((name for name in ("scratch", "widths", "pattern") if getattr(network, name)), pruning.prune_type)
    procedure = parse_call(settings.run.procedure)[0]
    parts = [
        Path(network.arch).name,
        settings.run.recipe,
        procedure if procedure not in ("once", kind, settings.run.recipe) else "",
        kind,
    ]
    budget = "macs" if pruning.target_macs else "params" if pruning.target_params else ""
    if gate := gate_that_learns(settings):
        parts.append(gate.name)
    elif pruning.prune_type != "none" and not network.pattern and takes_masks_of(settings) is None:
        parts.append(f"{budget}{1 - pruning.prune_rate if budget else pruning.prune_rate:g}")
    parts += [parse_call(settings.ending.factorise)[0]] if settings.ending.factorise else []
    parts += [word for word in (settings.training.reg, settings.training.distill) if word != "none"]
    return "-".join(re.sub(r"[^\w.]+", "_", part).strip("_") for part in parts if part)
