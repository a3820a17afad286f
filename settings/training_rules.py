"""This file holds the rules about images, labels and weights in training; settings/rules.py says what a rule is."""

from settings.calls import parts_of
from settings.flags import FLAGS
from settings.meaning import cuts_at_once, gate_that_learns, learns_from_unlabelled, phase_of, zero_filters
from settings.registry import DISTILLATIONS, PROCEDURES, parse_call
from settings.rules import rule


@rule("new", "saved")
def mixed_images_have_two_labels(settings) -> str | None:
    training = settings.training
    if not training.mixup:
        return None
    losses = parts_of(training.distill) if training.teacher is not None and training.distill != "none" else []
    asking = [loss for loss in losses if "true class" in DISTILLATIONS.entry(loss).traits]
    if asking:
        return f"--distill {asking[0]} is about the true class of an image, and with --mixup it has two: choose one"
    if learns_from_unlabelled(settings):
        name = PROCEDURES.entry(settings.run.procedure).name
        return f"--mixup mixes images that have labels, and --procedure {name} learns from others too: choose one"


@rule("new", "saved")
def the_best_epoch_is_chosen_by_held_out_images(settings) -> str | None:
    if settings.training.keep_best and settings.data.val_size == 0:
        return "--keep_best needs held-out images to choose by, and --val_size 0 leaves none: the test set chooses nothing"


@rule("new", "saved")
def weights_that_are_zero_are_those_of_the_last_step(settings) -> str | None:
    training = settings.training
    flag = "--ema" if training.ema else "--keep_best" if training.keep_best else None
    if flag and zero_filters(settings):
        why = (
            "an average of weights is never exactly 0" if training.ema else "which filters are at 0 changes up to the last epoch"
        )
        return f"{flag} does not go with --reg {training.reg}, which sets filters to 0: {why}"


@rule("new", "saved")
def without_training_there_is_a_network(settings) -> str | None:
    """With --epochs 0 a trained network is taken, cut before any training where that is asked for, and saved."""
    if settings.training.epochs > 0:
        return None
    if settings.network.init is None:
        return "--epochs 0 trains nothing: it needs --init, a network that has been trained"
    if (procedure := parse_call(settings.run.procedure)[0]) != "once":
        return f"--epochs 0 trains nothing, and --procedure {procedure} is a plan of training"
    if gate := gate_that_learns(settings):
        return f"--epochs 0 trains nothing, and --prune_gate {gate.name} learns what is cut"
    if zero_filters(settings):
        return f"--epochs 0 trains nothing, and --reg {settings.training.reg} sets filters to 0 in training"
    if settings.pruning.prune_type != "none" and not cuts_at_once(settings):
        return f"--epochs 0 ends before --prune_phase {phase_of(settings).name} has cut all: it needs --prune_phase init"


@rule("new")
def without_training_nothing_is_learned(settings) -> str | None:
    """Of flags that have their effect in training, where none follows a cut, also no fine-tuning."""
    if settings.training.epochs > 0 or settings.ending.finetune_epochs:
        return None
    for name in ("reg", "teacher", "accumulate", "freeze", "warmup_epochs", "label_smoothing", "mixup", "ema", "keep_best"):
        if settings.typed.get(name) not in (None, FLAGS[name].default):
            return f"--{name} has no effect with --epochs 0, which trains nothing"
