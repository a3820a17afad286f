"""The noisy student learns from images without labels, which its teacher, an earlier student, has labelled."""

from typing import Annotated, Literal

from settings.arguments import Settings
from settings.calls import listed
from settings.meaning import zero_filters
from training.stages import Stage


def noisy_student(
    settings: Settings,
    *,
    generations: Annotated[int, "at least 1", "at most 100"] = 3,
    labels: Literal["soft", "hard"] = "soft",
    confidence: Annotated[float, "below 1"] = 0.3,
    balance: bool = True,
    images_a_class: Annotated[int, "at most 1000000", "needs balance=True"] = 0,
    ratio: Annotated[int, "at least 1", "at most 100"] = 5,
    student: Annotated[str, "networks"] = "",
) -> Annotated[list[Stage], "unlabelled images", "compares trainings", "augment: randaugment"]:
    """Train a teacher, and then students of it, each of which is the next one's teacher (Xie et al., 2020).

    arXiv 1911.04252. The teacher learns from the labelled images without noise. Before each generation the network, without
    noise too, labels the unlabelled images: by its probabilities ('soft' `labels`) or the largest of them ('hard'). Used are
    those whose largest probability is above `confidence`, `images_a_class` of each class with `balance`, an equal share of all
    if 0. A student has fresh weights, and noise: what --augment says, and what the network drops. A batch has --batch_size
    labelled images and `ratio` times as many others; the loss is the cross-entropy of the first, and `ratio` times that of the
    others. Each stage goes through the whole learning-rate schedule. The last student alone is pruned. Students have the
    network that `student` names, as --arch does, and the teacher that of --arch: of several with commas between, each
    generation has its own, and those behind the last have that.
    """
    training = settings.training
    earlier = {"masks_stay": True, "reg": "none" if zero_filters(settings) else None}
    options = (
        f"labels={labels!r}, confidence={confidence!r}, balance={balance!r}, images_a_class={images_a_class!r}, ratio={ratio!r}"
    )
    students = listed(student) if student else []
    stages = [Stage("teacher", training.epochs, training.lr, warmup_epochs=training.warmup_epochs, noise=False, **earlier)]
    for number in range(1, generations + 1):
        its = f", student={students[min(number, len(students)) - 1]!r}" if students else ""
        enter = (f"pseudo_label(number={number}, {options}{its})",)
        again = {"warmup_epochs": training.warmup_epochs, "fixed": ("epochs",)} | (earlier if number < generations else {})
        stages.append(Stage(f"generation {number}", training.epochs, training.lr, enter, **again))
    measure = ("measure_generation",)
    return [*stages, Stage(f"after generation {generations}", 0, training.lr, measure, reg=stages[-1].reg)]
