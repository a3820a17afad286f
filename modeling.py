"""Trains a convolutional network on CIFAR-10 (or other images) and prunes it while it learns. `--help` lists the flags."""

import signal
import sys
import time

from settings.arguments import method, parse, typed_over
from settings.errors import Failed, Stopped, guard
from settings.recipes import departures

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while torch is being imported, Ctrl-C just ends the program
    # a wrong command is refused before torch is loaded
    with guard("modeling.py"):
        SETTINGS = parse(sys.argv[1:])
    if SETTINGS.evaluate or SETTINGS.predict:
        from deploy import use

        with guard("modeling.py"):
            use.main(SETTINGS)
        raise SystemExit

import platform
import re
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from itertools import chain, count, islice
from pathlib import Path

import numpy as np
import torch
import torchvision
from tqdm import tqdm

import models
from deploy import measure
from pruning import accounting
from runs.console import closing_lines, duration, epoch_lines, header, note, say_all
from runs.folder import Folder, provenance, refuse_used
from runs.records import best_row
from runs.tensorboard import Scalars
from tasks.classification import Meter
from training import actions
from training.engine import Stop, choose_device
from training.experiment import Experiment, start
from training.team import Team


def train_epoch(run: Experiment, epoch: int, bar) -> dict:
    """One pass over the training images. Failed, naming epoch and step, if the loss is not finite."""
    settings, model = run.settings, run.model
    model.train()
    meter, shown = Meter(settings.device), time.monotonic()
    for step, (images, labels) in zip(range(run.steps), run.batches(epoch), strict=False):
        if run.pruner is not None and run.pruner.before_step(epoch, step):
            run.team.same_([gate.mask for gate in run.pruner.gates.values()])
        run.optimizer.param_groups[0]["lr"] = learning_rate_at(run, epoch + step / run.steps)

        run.optimizer.zero_grad(set_to_none=True)
        logits, loss, decorrelation = run.forward(images, labels)
        (loss if decorrelation is None else loss + decorrelation).backward()
        run.optimizer.step()

        meter.add(logits, labels, loss, decorrelation)
        bar.update(run.batch)
        stop_here(run, f"in epoch {epoch} after step {step} of {run.steps}")
        if not bar.disable and time.monotonic() - shown > 1:
            shown, now = time.monotonic(), meter.read()
            bar.set_postfix_str(f"loss {now['loss']:.3f} acc {now['top1']:.1f}%{pruning_text(run)}", refresh=False)
    run.team.average_statistics(model)
    meter.gather(run.team)
    if (bad := int(meter.first_bad)) >= 0:
        where = f"epoch {epoch}, step {bad} of {run.steps}"
        cure = "--lr or --warmup_epochs 5" if run.after is None else "--finetune_lr"
        raise Failed(f"the loss was not finite at {where}: try a smaller {cure}")
    return meter.read()


def stop_here(run: Experiment, where: str) -> None:
    """Stopped if a signal asked for it."""
    if run.stop.signal:
        raise Stopped(run.stop.signal, f"{run.stop.signal.name} {where}")


def learning_rate_at(run: Experiment, epochs_done: float) -> float:
    """The schedule's factor of --lr, after a linear rise over --warmup_epochs; then the same of --finetune_lr."""
    settings = run.settings
    if run.after is not None:
        return settings.finetune_lr * run.learning_rate((epochs_done - settings.epochs) / settings.finetune_epochs)
    risen = min((epochs_done + 1 / run.steps) / settings.warmup_epochs, 1.0) if settings.warmup_epochs else 1.0
    return settings.lr * risen * run.learning_rate(epochs_done / settings.epochs)


def pruning_text(run: Experiment) -> str:
    """The pruning at work, for the bar."""
    if run.pruner is None:
        return ""
    zero, total = accounting.zeros(run.model)
    kept = sum(int(live.sum()) for live in accounting.filter_masks(run.model).values())
    return f" kept {kept} filters, sparsity {100 * zero / total:.1f}%, {int(run.pruner.changes)} masks changed"


def describe(run: Experiment) -> None:
    """What is in force, on stderr."""
    settings = run.settings
    precision = "float32" if settings.amp == "off" else settings.amp
    how = f"{precision}{', compiled' if settings.compile else ''}"
    how += f", {run.team.size} processes" if run.team.size > 1 else ""
    lines = [f"{settings.arch} on {settings.device}, {how}; {run.dataset}"]
    lines += [f"otherwise than the paper: {line}" for line in departures(settings)]
    if settings.recipe:
        typed = typed_over(settings)
        lines.append(f"recipe {settings.recipe}" + (f", typed over it: {', '.join(typed)}" if typed else ""))
    if run.batch < settings.batch_size:
        lines.append(f"batches hold all {run.batch} training images, fewer than --batch_size {settings.batch_size}")
    for line in lines:
        note(settings, line)


def epoch_row(run: Experiment, epoch: int, trained: dict, valid: dict, seconds: float, before: list[dict]) -> dict:
    """One row of metrics.jsonl. While the smaller network is trained, what was pruned is as it was `before`."""
    row = {"epoch": epoch, "train": trained, "valid": valid, "learning_rate": learning_rate_at(run, epoch)}
    row |= {"seconds": round(seconds, 3), "images_per_second": round(run.steps * run.batch / seconds, 1)}
    if run.pruner is not None:
        zero, total = accounting.zeros(run.model)
        kept = {name: int(live.sum()) for name, live in accounting.filter_masks(run.model).items()}
        row |= {"num_zero": zero, "num_total": total, "cut": run.pruner.cut(), "mask_changes": run.pruner.take_changes()}
        row |= {"kept_filters": kept}
    elif run.after:
        row |= {name: before[-1][name] for name in ("num_zero", "num_total", "cut", "kept_filters")} | {"mask_changes": 0}
    return row


def after_the_last_mask(run: Experiment) -> None:
    """Measure batch norm anew and take the filters out, where that is asked for; `run.after` says what came of it."""
    settings, dataset = run.settings, run.dataset
    run.after = {name: getattr(settings, name) for name in ("epochs", "recalibrate", "finetune_lr")}
    if settings.recalibrate:
        split = dataset.valid or dataset.test
        before = run.evaluate(split)["top1"]
        later = (run.batches(settings.epochs + n) for n in count())
        actions.recalibrate(run.model, islice(chain.from_iterable(later), settings.recalibrate), run.autocast)
        run.team.average_statistics(run.model)
        run.after["recalibration"] = {"batches": settings.recalibrate, "before": before, "after": run.evaluate(split)["top1"]}
    if settings.compact:
        stop_here(run, "before removal")
        note(settings, "taking the pruned filters out, and comparing the outputs on the test images")
        removal, smaller, run.after["removal"] = actions.take_out(run.model, dataset, 2 if settings.dry_run else None)
        momentum = run.optimizer
        run.go_on_with(smaller)
        removal.carry(momentum, smaller, run.optimizer)


def outcome(run: Experiment, rows: list[dict], test: dict, folder: Folder | None) -> dict:
    """What came of the run, for the closing lines and summary.json; the smaller network is saved."""
    settings, dataset = run.settings, run.dataset
    left = accounting.dense if settings.compact or settings.scratch else accounting.remaining
    result = {
        "last": rows[-1],
        "best": best_row(rows),
        "test": test,
        "dense": asdict(run.whole),
        "left": asdict(left(run.model, settings.image_size)),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "held_out": dataset.valid is not None,
        **run.after,
    }
    if settings.compact and folder:
        asked = method(settings) | {"epochs": settings.epochs, "data_dir": settings.data_dir}
        trained = {"settings": asked, **{name: result[name] for name in ("test", "dense", "left", "last")}}
        card = models.Card(
            settings.arch, dataset.classes, settings.image_size, dataset.mean.tolist(), dataset.std.tolist(), trained
        )
        stop_here(run, "before the smaller network was saved")
        result["file"] = measure.write(folder.path / "model.pt", measure.dense_network(run), run.model, card)
    return result


def main(settings) -> None:
    choose_device(settings)
    team = Team.join(settings.device)
    settings.quiet |= not team.leads
    stop = Stop()
    if team.size == 1:  # of several, one that waits for the next step would wait for ever: a signal ends them at once
        stop.listen()
    if team.leads:
        refuse_used(settings.out_dir)
    with ExitStack() as held:
        held.callback(team.leave)
        folder = held.enter_context(Folder.resume(Path(settings.resume))) if settings.resume and team.leads else None
        result = folder.result(settings) if folder else None
        if team.share(result is not None):
            if folder:
                say_all(header(settings), *(line for row in folder.rows for line in epoch_lines(row)))
                say_all(*closing_lines(result, settings))
            return
        state = team.share(folder.state if folder else None)
        run = start(settings, stop, team, state and state.get("scratch"))
        if state:
            run.restore(state)
        elif not settings.dry_run and team.leads:
            folder = held.enter_context(Folder.create(settings.out_dir, run_name(settings)))
            folder.save(run.state())
        carry_out(run, folder, state["rows"] if state else [])


def carry_out(run: Experiment, folder: Folder | None, done: list[dict]) -> None:
    """Say what is in force, train on after the epochs that are `done`, and record what came of it."""
    settings = run.settings
    describe(run)
    if folder:
        for line in folder.changed(config(run)):
            note(settings, f"otherwise than when the run began: {line}")
        folder.begin({**provenance(), **config(run)})
    try:
        result = fit(run, folder, done)
    except Stopped as error:
        how = f": go on with --resume {folder.path}" if folder else ""
        raise Stopped(error.number, f"{error}{how}") from None
    try:
        if "file" in result:
            measure.measure_and_export(run, result, partial(stop_here, run, "while measuring; --resume does it again"))
    finally:  # what fails here takes nothing with it
        say_all(*closing_lines(result, settings))
        if folder:
            folder.write("summary.json", result)
            note(settings, f"records: {folder.path}")


def fit(run: Experiment, folder: Folder | None, done: list[dict]) -> dict:
    """All epochs that are still to come after those that are `done`, and what came of the run."""
    settings, dataset, rows = run.settings, run.dataset, list(done)
    say_all(header(settings), *(line for row in rows for line in epoch_lines(row)))
    images, hidden = run.steps * run.batch, True if settings.quiet else None
    epochs = settings.epochs + settings.finetune_epochs
    bar = tqdm(total=epochs * images, unit="img", unit_scale=True, disable=hidden, initial=len(rows) * images)
    scalars = Scalars(folder) if folder and settings.tensorboard else None
    with bar:
        for epoch in range(len(rows), epochs):
            if epoch == settings.epochs:
                if folder:
                    folder.keep("masked.pt")
                after_the_last_mask(run)
            began = time.monotonic()
            trained = train_epoch(run, epoch, bar)
            seconds = time.monotonic() - began
            valid = run.evaluate(dataset.valid or dataset.test)
            rows.append(epoch_row(run, epoch, trained, valid, seconds, rows))
            if folder:
                folder.log(rows[-1], run.state())
            if scalars:
                scalars.log(rows[-1])
            say_all(*epoch_lines(rows[-1]))
            if len(rows) == 1 and epochs > 1:
                whole = (time.monotonic() - began) * epochs
                note(settings, f"epoch 0 took {seconds:.1f} s; all {epochs} will take about {duration(whole)}")
    if run.after is None:
        after_the_last_mask(run)
    # the held-out images made every choice; the test images are read here, once
    as_validated = dataset.valid is None and not (settings.compact or settings.recalibrate)
    return outcome(run, rows, rows[-1]["valid"] if as_validated else run.evaluate(dataset.test), folder)


def config(run: Experiment) -> dict:
    """What config.json says beside the command: every setting resolved, filters per layer, versions, device."""
    cuda = run.settings.device == "cuda"
    return {
        "settings": vars(run.settings) | {"resume": None},
        "filters": {name: unit.filters for name, unit in run.model.units.items()},
        "prunable": sum(mask.mask.numel() for mask in run.pruner.gates.values()) if run.pruner else 0,
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__, "numpy": np.__version__},
        "device_name": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "processes": run.team.size,
    }


def run_name(settings) -> str:
    """Such as resnet50-structured-0.6-reg_cov."""
    parts = [settings.arch, settings.recipe, "scratch" if settings.scratch else settings.prune_type]
    budget = "macs" if settings.target_macs else "params" if settings.target_params else ""
    parts += [f"{budget}{1 - settings.prune_rate if budget else settings.prune_rate:g}"] if settings.prune_type != "none" else []
    parts += [settings.reg] if settings.reg != "none" else []
    return "-".join(re.sub(r"[^\w.]+", "_", part).strip("_") for part in parts if part)


if __name__ == "__main__":
    with guard("modeling.py"):
        main(SETTINGS)
