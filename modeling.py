"""Trains a convolutional network on CIFAR-10 (or other images) and prunes it while it learns. `--help` lists the flags."""

import sys
import time

from arguments import RefusalError, departures, fail, parse

if __name__ == "__main__":
    # a wrong command is refused before torch is loaded
    try:
        SETTINGS = parse(sys.argv[1:])
    except RefusalError as refusal:
        fail(str(refusal))

import os
import platform
import random
import re
from dataclasses import asdict
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from tqdm import tqdm

import data
import models
from arguments import LEARNING_RATES, RECIPES, REGULARIZERS
from pruning import Pruner, accounting
from runs import Run

EVALUATION_BATCH = 500


class DivergedError(Exception):
    """The loss stopped being a number."""


class Meter:
    """Sums over an epoch, kept on the device: nothing is read back before `read`."""

    def __init__(self, device):
        self.sums = torch.zeros(4, device=device)
        self.images = 0
        self.first_bad = torch.full((), -1, device=device)
        self.steps = 0

    @torch.no_grad()
    def add(self, logits, labels, loss, penalty=None):
        ranked = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        penalty = torch.zeros_like(loss) if penalty is None else penalty
        self.sums += torch.stack([ranked[:, 0].sum(), ranked.sum(), loss * len(labels), penalty * len(labels)])
        bad = ~torch.isfinite(loss + penalty) & (self.first_bad < 0)
        self.first_bad = torch.where(bad, self.steps, self.first_bad)
        self.images += len(labels)
        self.steps += 1

    def read(self) -> dict:
        """Top-1 and top-5 in %, loss and penalty, each a mean over images."""
        top1, top5, loss, penalty = (self.sums.double() / self.images).tolist()
        return {"top1": 100 * top1, "top5": 100 * top5, "loss": loss, "penalty": penalty}


def train_epoch(epoch, model, dataset, optimizer, settings, pruner, penalty, autocast, bar):
    """One pass over the training images. DivergedError, naming epoch and step, if the loss is not finite."""
    model.train()
    steps = settings.steps
    meter, shown = Meter(settings.device), time.monotonic()
    batches = dataset.epoch(settings.batch_size, settings.augment, settings.seed, epoch)
    for step, (images, labels) in zip(range(steps), batches, strict=False):
        if pruner is not None:
            pruner.before_step(epoch, step)
        optimizer.param_groups[0]["lr"] = learning_rate_at(epoch + step / steps, settings)

        with autocast():
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        decorrelation = settings.odecay * penalty(model) if penalty is not None else None
        optimizer.zero_grad(set_to_none=True)
        (loss if decorrelation is None else loss + decorrelation).backward()
        optimizer.step()

        meter.add(logits, labels, loss, decorrelation)
        bar.update(len(labels))
        if not bar.disable and time.monotonic() - shown > 1:
            shown, now = time.monotonic(), meter.read()
            bar.set_postfix_str(f"loss {now['loss']:.3f} acc {now['top1']:.1f}% {sparsity_text(model, pruner)}", refresh=False)
    if (bad := int(meter.first_bad)) >= 0:
        raise DivergedError(
            f"the loss was not finite at epoch {epoch}, step {bad} of {steps}: try a smaller --lr or --warmup_epochs 5"
        )
    return meter.read()


@torch.no_grad()
def evaluate(model, dataset, images, settings, autocast):
    """Accuracy and loss over a split, in evaluation mode, the masks in force."""
    model.eval()
    meter = Meter(settings.device)
    for number, (pixels, labels) in enumerate(dataset.ordered(images, EVALUATION_BATCH)):
        if settings.dry_run and number == 2:
            break
        with autocast():
            logits = model(pixels)
        meter.add(logits, labels, F.cross_entropy(logits.float(), labels))
    return meter.read()


def learning_rate_at(epochs_done: float, settings) -> float:
    """The schedule's factor of --lr, after a linear rise over --warmup_epochs."""
    warmup = min((epochs_done + 1 / settings.steps) / settings.warmup_epochs, 1.0) if settings.warmup_epochs else 1.0
    return settings.lr * warmup * LEARNING_RATES.get(settings.lr_schedule)(epochs_done / settings.epochs)


def sparsity_text(model, pruner) -> str:
    if pruner is None:
        return ""
    zero, total = accounting.zeros(model)
    return f"sparsity {100 * zero / total:.1f}%"


def choose_device(settings) -> None:
    """The best device there is, and its precision. RefusalError if the one asked for is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    settings.device = settings.device or next(name for name, present in there.items() if present)
    if not there[settings.device]:
        raise RefusalError(
            f"--device {settings.device}: torch finds no such device here; choose from {', '.join(n for n in there if there[n])}"
        )
    if settings.amp is None:
        # without the processor's own instructions bfloat16 is emulated, and slower than float32
        native = settings.device == "cuda" or (settings.device == "cpu" and torch.cpu._is_avx512_bf16_supported())
        settings.amp = "bfloat16" if native else "off"
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)


def seed_everything(settings) -> None:
    random.seed(settings.seed)
    np.random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    torch.backends.cudnn.benchmark = not settings.deterministic
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def build(settings):
    """Network, pruner and penalty. The data set is only named yet: a rate that cannot be met fails before it is read."""
    model = models.build(settings.arch, classes=data.class_count(settings.dataset, settings.data_dir))
    model = model.to(settings.device, memory_format=torch.channels_last)
    penalty = None if settings.reg == "none" else REGULARIZERS.get(settings.reg)
    if settings.prune_type == "none":
        return model, None, penalty
    try:
        pruner = Pruner(
            model,
            prune_type=settings.prune_type,
            criterion=settings.prune_imp,
            scope=settings.prune_scope,
            phase=settings.prune_phase,
            schedule=settings.prune_schedule,
            rate=settings.prune_rate,
            gate=settings.prune_gate,
            frequency=settings.prune_freq,
            until=settings.prune_until,
            seed=settings.seed,
        )
    except ValueError as error:
        raise RefusalError(f"--prune_rate: {error}") from None
    return model, pruner, penalty


def start(settings):
    """Everything that exists before the first step; what is in force goes to stderr."""
    choose_device(settings)
    seed_everything(settings)
    model, pruner, penalty = build(settings)
    dataset = data.load(
        settings.dataset,
        settings.data_dir,
        val_size=settings.val_size,
        normalise=settings.normalise,
        image_size=settings.image_size,
        device=settings.device,
    )
    settings.batch_size = min(settings.batch_size, len(dataset.train))
    settings.steps = dataset.steps(settings.batch_size)
    if settings.dry_run:
        settings.epochs, settings.steps = 1, min(settings.steps, 2)
    if pruner is not None:
        sample = partial(dataset.sample, settings.batch_size, settings.score_batches, settings.seed)
        pruner.begin(settings.epochs, settings.steps, sample)
    optimizer = torch.optim.SGD(
        model.parameters(),
        settings.lr,
        settings.momentum,
        weight_decay=settings.weight_decay,
        fused=settings.device != "mps",
    )
    note(f"{settings.arch} on {settings.device}, {'float32' if settings.amp == 'off' else settings.amp}; {dataset}")
    for line in departures(settings):
        note(f"otherwise than the paper: {line}")
    if settings.recipe:
        replaced = sorted(set(settings.typed) & set(RECIPES[settings.recipe]))
        note(
            f"recipe {settings.recipe}" + (f", typed over it: {', '.join('--' + name for name in replaced)}" if replaced else "")
        )
    return model, pruner, penalty, dataset, optimizer


def note(line: str) -> None:
    print(line, file=sys.stderr)


def say(line: str) -> None:
    """A line on stdout, which may be a file that somebody follows, past the bar on the terminal."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def epoch_row(epoch, trained, valid, model, pruner, settings, seconds) -> dict:
    """One row of metrics.jsonl."""
    row = {"epoch": epoch, "train": trained, "valid": valid, "learning_rate": learning_rate_at(epoch, settings)}
    row |= {"seconds": round(seconds, 3), "images_per_second": round(settings.steps * settings.batch_size / seconds, 1)}
    if pruner is not None:
        zero, total = accounting.zeros(model)
        kept = {name: int(live.sum()) for name, live in accounting.filter_masks(model).items()}
        row |= {"num_zero": zero, "num_total": total, "mask_changes": pruner.take_changes(), "kept_filters": kept}
    return row


def outcome(rows, test, model, dataset, settings, seconds) -> dict:
    """What came of the run, for the closing lines and summary.json."""
    whole, left = accounting.dense(model, dataset.image_size), accounting.remaining(model, dataset.image_size)
    return {
        "last": rows[-1],
        "best": max(rows, key=lambda row: row["valid"]["top1"]),
        "test": test,
        "dense": asdict(whole),
        "left": asdict(left),
        "epochs": len(rows),
        "seconds": round(seconds, 1),
        "images": {"train": len(dataset.train), "valid": len(dataset.valid or ()), "test": len(dataset.test)},
    }


def closing_lines(result: dict, prune_type: str) -> list[str]:
    """None begins with train, valid or sparsity; the last one is the published list of the best epoch."""
    last, best, images = result["last"], result["best"], result["images"]
    where = f"{images['valid']} held-out images" if images["valid"] else "test set, which so chose the best epoch"
    lines = [
        f"result accuracy: last {last['valid']['top1']:.2f}, best {best['valid']['top1']:.2f} at epoch {best['epoch']} ({where})",
        f"result test accuracy: {result['test']['top1']:.2f} after the last epoch ({images['test']} images)",
    ]
    how = "not zero" if prune_type == "unstructured" else "left after removal"
    for name, word in (("filters", "filters"), ("parameters", "parameters"), ("macs", "MACs")):
        left, of = result["left"][name], result["dense"][name]
        lines.append(f"result {word}: {left} of {of} {how} ({100 * left / of:.2f} %)")
    lines.append(f"result seconds: {result['seconds']} for {result['epochs']} epochs")
    scores = [best["train"]["top1"], best["train"]["top5"], best["valid"]["top1"], best["valid"]["top5"]]
    return [*lines, str([best["epoch"], *(round(score, 2) for score in scores)])]


def main(settings) -> None:
    started = time.monotonic()
    model, pruner, penalty, dataset, optimizer = start(settings)
    run = None if settings.dry_run else Run(settings.out_dir, run_name(settings))
    if run:
        run.write("config.json", config(settings))
    autocast = partial(torch.autocast, settings.device, torch.bfloat16, enabled=settings.amp == "bfloat16")

    rate, alpha = (settings.prune_rate if pruner else 0.0), (settings.odecay if penalty else 0.0)
    say(f"prune rate {rate} regularization odecay {alpha}")
    total, rows = settings.epochs * settings.steps * settings.batch_size, []
    with tqdm(total=total, unit="img", unit_scale=True, disable=None, file=sys.stderr) as bar:
        for epoch in range(settings.epochs):
            began = time.monotonic()
            trained = train_epoch(epoch, model, dataset, optimizer, settings, pruner, penalty, autocast, bar)
            seconds = time.monotonic() - began
            valid = evaluate(model, dataset, dataset.valid or dataset.test, settings, autocast)
            rows.append(epoch_row(epoch, trained, valid, model, pruner, settings, seconds))
            say(f"train {epoch} ====> Acc@1 {trained['top1']:.3f} Acc@5 {trained['top5']:.3f}")
            if pruner:
                zero, weights = accounting.zeros(model)
                say(f"sparsity {epoch} ====> {100 * zero / weights:.2f}% || num_zero/num_total: {zero}/{weights}")
            say(f"valid {epoch} ====> Acc@1 {valid['top1']:.3f} Acc@5 {valid['top5']:.3f}")
            if run:
                run.log(rows[-1])
    # the held-out images made every choice; the test images are read here, once
    test = evaluate(model, dataset, dataset.test, settings, autocast) if dataset.valid else rows[-1]["valid"]
    result = outcome(rows, test, model, dataset, settings, time.monotonic() - started)
    for line in closing_lines(result, settings.prune_type):
        say(line)
    if run:
        run.write("summary.json", result)
        note(f"records: {run.folder}")


def config(settings) -> dict:
    """What config.json adds to the command: every setting resolved, versions, device."""
    name = torch.cuda.get_device_name() if settings.device == "cuda" else platform.processor() or platform.machine()
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "numpy": np.__version__}
    return {"settings": vars(settings), "versions": versions, "device_name": name, "threads": torch.get_num_threads()}


def run_name(settings) -> str:
    """Such as resnet50-structured-0.6-reg_cov."""
    parts = [settings.arch, settings.recipe, settings.prune_type]
    parts += [f"{settings.prune_rate:g}"] if settings.prune_type != "none" else []
    parts += [settings.reg] if settings.reg != "none" else []
    return "-".join(re.sub(r"[^\w.]+", "_", part).strip("_") for part in parts if part)


if __name__ == "__main__":
    try:
        main(SETTINGS)
    except (RefusalError, data.DataError, FileExistsError) as error:
        fail(str(error))
    except DivergedError as error:
        fail(str(error), 1)
    except KeyboardInterrupt:
        fail("interrupted", 130)
