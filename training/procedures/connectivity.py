"""This procedure asks whether training from one state ends in one place: it trains copies, and measures what is between them."""

from dataclasses import replace
from typing import Annotated, Literal

from settings.arguments import Settings
from training.stages import Stage


def connectivity(
    settings: Settings,
    *,
    split: str = "0it",
    copies: Annotated[int, "at least 2", "at most 100"] = 2,
    points: Annotated[int, "at least 2", "at most 1000"] = 30,
    statistics: Literal["measured", "interpolated"] = "measured",
    batches: Annotated[int, "at least 1", "at most 1000000", "needs statistics='measured'"] = 20,
    of: Annotated[str, "masks"] = "",
    number: Annotated[int, "at most 1000"] = 0,
) -> Annotated[list[Stage], "compares trainings"]:
    """Train copies from one state in other orders, and measure the error between them (Frankle et al., 2020).

    arXiv 1912.05671. The copies share the weights at `split`, such as '0it', '500it' or '2ep', and what is random differs
    from there on. The test error is measured at `points` places, evenly from one copy's weights to the other's, and half-way;
    the barrier is its largest value less the mean of both ends; the copies are connected where that is below 2 %. Batch
    norm's statistics are 'measured' anew at each place on `batches` batches, or 'interpolated' like the weights. With `of` the
    copies are of the ticket of round `number` in that run of `rounds`, the last one if 0, and split where it was rewound to.
    """
    training, shared = settings.training, {"warmup_epochs": settings.training.warmup_epochs, "fixed": ("epochs",)}
    first = Stage("copy 1", training.epochs, training.lr, remember=(split,), warmup_epochs=training.warmup_epochs)
    if of:
        enter = (f"load_tickets(of={of!r})", f"take_ticket(number={number}, to={split!r})")
        first = replace(first, enter=enter, start=split, remember=(), masks_stay=True)
    enter = ("keep_copy", f"rewind(to={split!r})")
    others = [
        Stage(f"copy {copy}", training.epochs, training.lr, enter, start=split, masks_stay=True, **shared)
        for copy in range(2, copies + 1)
    ]
    connect = f"connect(split={split!r}, points={points}, statistics={statistics!r}, batches={batches})"
    return [first, *others, Stage("between the copies", 0, training.lr, ("keep_copy", connect), masks_stay=True)]
