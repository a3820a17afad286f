"""This file says when a flag has no effect because of the task; settings/effects.py says what a condition is."""

from settings.meaning import task_of
from settings.registry import AUGMENTATIONS, DATASETS


def weighs_whole_images(settings) -> str | None:
    """--class_weights, for a data set of pictures with boxes."""
    if task_of(DATASETS.entry(settings.data.dataset)) == "detection":
        return f"has no effect on {settings.data.dataset}: it weighs whole images by their class"


def augments_other_targets(settings) -> str | None:
    """--augment, with what is for another task."""
    if settings.data.augment is None:
        return None
    augment, data = AUGMENTATIONS.entry(settings.data.augment), settings.data.dataset
    boxes = task_of(DATASETS.entry(data)) == "detection"
    if "any task" in augment.traits or (task_of(augment) == "detection") == boxes:
        return None
    if boxes:
        return f"{augment.name} has no effect on {data}: pictures with boxes are augmented by ssd, or none"
    return f"{augment.name} has no effect on {data}: it is about pictures with boxes"


def draws_no_boxes(settings) -> str | None:
    """--draw, without --predict."""
    if not settings.use.predict:
        return "has no effect without --predict, whose boxes it draws"
