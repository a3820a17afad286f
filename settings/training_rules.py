"""This file holds the rules about images, labels and weights in training; settings/rules.py says what a rule is."""

from settings.calls import parts_of
from settings.meaning import learns_from_unlabelled, zero_filters
from settings.registry import DISTILLATIONS, PROCEDURES
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
