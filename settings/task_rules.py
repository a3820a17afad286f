"""This file holds the rules about the task that a data set is for; settings/rules.py says what a rule is."""

from settings.meaning import learns_from_unlabelled, misfit, pixels_of, scratch_model, task_of
from settings.own_files import own_file
from settings.registry import DATASETS, NETWORKS, parse_call
from settings.rules import rule


@rule("new")
def the_network_is_for_the_data(settings) -> str | None:
    """The network is for the data set's task, and for the size that was typed; that of an earlier run is checked with it."""
    arch = settings.network.arch or f"resnet{settings.network.layers}"
    if settings.network.init or scratch_model(settings) or not (own_file(arch) or parse_call(arch)[0] in NETWORKS.entries):
        return None
    size = settings.typed.get("image_size", pixels_of(arch) or settings.data.image_size)
    words = misfit(arch, settings.data.dataset, size)
    return words and f"--{'arch' if settings.network.arch else 'layers'}: {words}"


@rule("new", "saved")
def whole_images_have_one_class(settings) -> str | None:
    """Of what teaches, and of what guesses labels: both are about the one output of a network that names classes."""
    asked = {
        "--teacher": settings.training.teacher is not None,
        "--labelled": settings.data.labelled is not None,
        "--unlabelled": settings.data.unlabelled is not None,
        f"--procedure {settings.run.procedure}": learns_from_unlabelled(settings),
    }
    flags = [flag for flag, typed in asked.items() if typed]
    if flags and task_of(DATASETS.entry(settings.data.dataset)) != "classification":
        return f"{flags[0]} is for networks that name the class of an image, and --dataset {settings.data.dataset} is not"


@rule("new", "saved")
def whole_pictures_are_in_files(settings) -> str | None:
    """Of an augmentation that cuts parts out of whole pictures."""
    data = settings.data
    if data.augment is None or parse_call(data.augment)[1].get("of") != "file":
        return None
    if "memory" not in DATASETS.entry(data.dataset).options:
        files = " or ".join(name for name, entry in DATASETS.entries.items() if "memory" in entry.options)
        return f"--augment {data.augment} reads whole pictures from their files: it needs --dataset {files}, not {data.dataset}"
    if learns_from_unlabelled(settings) or data.labelled is not None:
        return f"--augment {data.augment} is of pictures with labels, which are read anew at every step; others are kept"


@rule("new", "saved")
def imagenet_has_three_channels(settings) -> str | None:
    data = settings.data
    if data.normalise in ("imagenet", "caffe") and "channels" in DATASETS.entry(data.dataset).options and data.channels != 3:
        return f"--normalise {data.normalise} is by the means of three channels: leave out --channels 1"
