"""A run's record: what config.json says of it, a row for each epoch, and the result that summary.json holds."""

import platform
import re
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
import torchvision

from pruning import accounting
from runs.records import best_row
from settings.arguments import Settings
from training.experiment import Experiment


@dataclass
class Row:
    """What came of one epoch; a row of metrics.jsonl.

    `train` and `valid` are the task's measures, the metric first. Of pruned runs also the weights under a mask and all
    weights, the mask entries that are 0, those that moved in this epoch, and the filters kept in each layer.
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
    def of(cls, run: Experiment, epoch: int, trained: dict, valid: dict, seconds: float, earlier: list[dict]) -> "Row":
        """The row of the epoch that a run has just ended."""
        rate, images = run.learning_rate(epoch), run.steps * run.task.batch
        row = cls(epoch, run.now.name, trained, valid, rate, round(seconds, 3), round(images / seconds, 1))
        names = ("num_zero", "num_total", "cut", "mask_changes", "kept_filters")
        if run.pruner is not None:
            zero, total = accounting.zeros(run.model)
            kept = {name: int(live.sum()) for name, live in accounting.filter_masks(run.model).items()}
            row.pruning = dict(zip(names, (zero, total, run.pruner.cut(), run.pruner.take_changes(), kept), strict=True))
        elif earlier and "cut" in earlier[-1]:
            # the filters are gone: what was pruned is as it was
            row.pruning = {name: earlier[-1][name] for name in names} | {"mask_changes": 0}
        return row

    def plain(self) -> dict:
        """The row as plain values, pruning's among the others."""
        values = asdict(self)
        return values | values.pop("pruning")


@dataclass
class Result:
    """What came of a run: its last, its best and its test measures, and what it left of the network.

    `last` and `best` are rows; `dense` and `left` count filters, parameters and MACs. `removable` says whether what is
    masked can be taken out, `exact` whether that leaves the outputs as they are. `actions` holds what recalibration
    and removal came to; of a network that was taken out of its masks there are its file, latencies and exports.
    """

    last: dict
    best: dict
    test: dict
    dense: dict
    left: dict
    seconds: float
    held_out: bool
    removable: bool
    exact: bool
    actions: dict

    @classmethod
    def of(cls, run: Experiment, rows: list[dict], test: dict) -> "Result":
        """The result of a run that has ended, given its rows and its measures on the test images."""
        settings = run.settings
        gone = settings.ending.compact or settings.network.scratch
        left = (accounting.dense if gone else accounting.remaining)(run.model, settings.data.image_size)
        fixed = {name: settings.flat[name] for name in ("epochs", "recalibrate", "finetune_lr")}
        return cls(
            rows[-1],
            best_row(rows, run.task.metric),
            test,
            asdict(run.whole),
            asdict(left),
            round(sum(row["seconds"] for row in rows), 1),
            run.task.valid is not None,
            run.pruner is None or run.pruner.granularity.removable,
            all(unit.gate is None or unit.gate.exact for unit in run.model.all_units.values()),
            fixed | run.results,
        )

    def plain(self) -> dict:
        """The result as plain values, those of the actions among the others."""
        values = asdict(self)
        return values | values.pop("actions")


def config(run: Experiment) -> dict:
    """What config.json says beside the command: every setting resolved, the plan, filters per layer, versions, device."""
    cuda = run.engine.device == "cuda"
    typed = {"typed": run.settings.typed, "resume": None, "compile": run.engine.compile}
    return {
        "settings": run.settings.flat | typed,
        "plan": run.plan.record(),
        "metric": run.task.metric,
        "data": run.task.record(),
        "filters": {name: unit.filters for name, unit in run.model.units.items()},
        "prunable": run.pruner.entries if run.pruner else 0,
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__, "numpy": np.__version__},
        "device_name": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "processes": run.team.size,
    }


def run_name(settings: Settings) -> str:
    """The default name of a run's folder, such as resnet50-structured-0.6-reg_cov."""
    network, asked = settings.network, settings.pruning
    parts = [network.arch, settings.run.recipe, "scratch" if network.scratch else asked.prune_type]
    budget = "macs" if asked.target_macs else "params" if asked.target_params else ""
    if asked.prune_type != "none":
        parts.append(f"{budget}{1 - asked.prune_rate if budget else asked.prune_rate:g}")
    parts += [settings.training.reg] if settings.training.reg != "none" else []
    return "-".join(re.sub(r"[^\w.]+", "_", part).strip("_") for part in parts if part)
