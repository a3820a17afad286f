"""This file holds the answers to --augment: each says by which random changes a training image is shown."""

from typing import Annotated, Literal

from tasks.views import Augmentation


def none() -> Annotated[Augmentation, "any task"]:
    """Images as they are"""
    return Augmentation()


def crop() -> Augmentation:
    """Crops of the image's size after zeros were padded around it, an eighth of the side, as 4 pixels of 32"""
    return Augmentation(crops=True)


def crop_flip() -> Augmentation:
    """Such crops, of which every other one is mirrored"""
    return Augmentation(crops=True, flips=True)


def resized_crop(
    *, scale: Annotated[float, "above 0", "at most 1"] = 0.08, of: Literal["square", "file"] = "square"
) -> Augmentation:
    """Parts of random size and shape, at least the fraction `scale`, stretched to the image's size; half are mirrored

    Szegedy et al., 2015 (arXiv 1409.4842), by torchvision's RandomResizedCrop. of='square' cuts them out of the squares that are
    kept, of='file' out of whole pictures, which are then read from their files at every step.
    """
    return Augmentation(scale=scale, from_files=of == "file")


def ssd() -> Annotated[Augmentation, "task: detection"]:
    """Pictures with boxes: colours, zooming out, parts that have a box, mirrors (Liu et al., 2016)"""
    return Augmentation(boxes=True)


def randaugment(
    *,
    number: Annotated[int, "at least 1", "at most 10"] = 2,
    magnitude: Annotated[int, "at most 30"] = 9,
    base: Literal["", "none", "crop", "crop_flip"] = "",
) -> Augmentation:
    """Behind the data set's own augmentation, so many random operations on each image (RandAugment: Cubuk et al., 2020)

    arXiv 1909.13719; operations and magnitudes, 0 to 30, are those of torchvision. `base` is what comes before them; the
    program fills in the data set's own.
    """
    first = {"none": none, "crop": crop, "crop_flip": crop_flip}[base or "crop_flip"]()
    return Augmentation(first.crops, first.flips, number, magnitude)
