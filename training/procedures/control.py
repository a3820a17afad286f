"""The controls of lottery tickets train other tickets than those that rounds of pruning have found."""

from typing import Annotated, Literal

from settings.arguments import Settings
from training.stages import Stage


def control(
    settings: Settings,
    *,
    of: Annotated[str, "masks"],
    kind: Literal[
        "random",
        "shuffle",
        "reinitialise",
        "permute",
        "permute_kept",
        "signed_permute",
        "signed_permute_kept",
        "signed_constant",
        "run",
    ] = "random",
    pruned: Literal["zero", "initial", "grown", "grown_all"] = "zero",
    n: Annotated[int, "at most 1000"] = 0,
    to: str = "0it",
) -> Annotated[list[Stage], "cuts", "amounts", "compares trainings"]:
    """Train the tickets of an earlier run again, with another mask or other weights (Frankle and Carbin, 2019).

    `of` is a run of `rounds` whose weights were rewound, or one that cut fresh weights by --prune_phase init. Each ticket has
    as many weights left in each layer as that of the run after as many rounds. 'random' keeps random ones, of those that its
    ticket before has kept; 'shuffle' moves the run's mask to other places of each layer (Frankle et al., 2021, arXiv
    2009.08576); 'reinitialise' keeps the run's mask, and draws fresh weights, which train from the first step on. The others
    keep the run's mask, and give its rewound weights other places or values (Zhou et al., 2019, arXiv 1905.01067; see
    training/initial_values.py), with a fresh optimiser; 'run' changes nothing of the run's tickets.

    While a ticket trains, weights that are cut are 0. With pruned='initial' they stay what they were at `to`, or the fresh ones;
    with 'grown' only those that the run had not moved towards 0 when it cut them. With 'grown_all' kept weights that it had
    moved towards 0 also begin at 0, with a fresh optimiser. Such a network is not sparse: what is held counts as left.

    `n` and `to` are those of the run; the program fills them in.
    """
    training, start = settings.training, "0it" if kind == "reinitialise" else to
    again = {"start": start, "warmup_epochs": training.warmup_epochs, "fixed": ("epochs",), "masks_stay": True}
    stages = []
    for number in range(1, n + 1):
        before = f"measure_round(number={number - 1})" if stages else f"load_tickets(of={of!r})"
        enter = (before, f"take_ticket(number={number}, kind={kind!r}, to={to!r}, pruned={pruned!r})")
        stages.append(Stage(f"round {number}", training.epochs, training.lr, enter, **again))
    return [*stages, Stage(f"after round {n}", 0, training.lr, (f"measure_round(number={n})",), masks_stay=True)]
