"""These actions belong to procedures that train a network again and again: rounds of pruning, their controls, and copies.

training/actions.py says what an action is.
"""

from itertools import combinations
from typing import Annotated, Literal

import torch

from runs.console import note, round_line
from settings.errors import Failed, Refused
from training.collapsing import tell_collapse
from training.earlier_tickets import tickets_in
from training.experiment import Experiment
from training.initial_values import KINDS, begin_at_zero, hold_what_is_cut, put_other_values
from training.tickets import (
    between,
    cut_round,
    fresh_weights,
    masks_of,
    other_masks,
    put_masks,
    put_weights,
    rewind_to,
    shrunk_by,
    state_of,
    unpacked,
    weights_of,
)


def measure_round(run: Experiment, *, number: Annotated[int, "at most 1000"] = 0) -> dict:
    """Measure what a round of pruning came to. Returns the records of the rounds so far: what is left, and the metrics."""
    task, pruner = run.task, run.pruner
    record = {"round": number, "density": 1 - pruner.cut() / pruner.entries}
    if getattr(pruner.mask, "held", None) is not None:
        record |= {"trained": sum(int(gate.mask.sum()) for gate in pruner.gates.values()) / pruner.entries}
    record |= {"held_out": run.evaluate(task.valid)[task.metric]} if task.valid else {}
    record |= {"test": run.evaluate(task.test)[task.metric]}
    note(run.settings, round_line(record, run.task.word))
    return {"rounds": [*run.results.get("rounds", ()), record]}


def cut(
    run: Experiment,
    *,
    number: Annotated[int, "at least 1", "at most 1000"] = 1,
    fraction: Annotated[float, "above 0", "below 1"] = 0.2,
    classifier: Annotated[float, "above 0", "at most 1"] = 1.0,
) -> dict:
    """Cut a fraction of what is left, for the time of this number; the last linear layer loses `classifier` times of it.

    Raises Failed if the criterion cannot score.
    """
    run.pruner.look_at(run.sample, run.task)
    shrunk = shrunk_by(run)
    try:
        cut_round(run.pruner, number, fraction, classifier)
    except ValueError as error:
        raise Failed(f"--procedure rounds, round {number}: {error}") from None
    run.team.same_([buffer for gate in run.pruner.gates.values() for buffer in gate.buffers()])
    run.collapsed = tell_collapse(run)
    run.tickets.masks.append(masks_of(run))
    run.tickets.shrunk += shrunk
    return {}


def rewind(run: Experiment, *, to: str = "0it") -> dict:
    """Bring weights, statistics and optimiser back to what they were at a place that was remembered; masks stay."""
    rewind_to(run, to)
    return {}


def restart(run: Experiment) -> dict:
    """Let the optimiser begin anew."""
    run.optimizer.state.clear()
    return {}


def load_tickets(run: Experiment, *, of: str) -> dict:
    """Read what an earlier run has kept: its masks, and the state that it was rewound to, or what this run begins with."""
    kept = tickets_in(of)
    if kept.pop("seed", None) is not None:
        kept["states"] = dict.fromkeys(kept["states"], state_of(run))
    try:
        run.tickets.take(kept, run)
    except ValueError as error:
        raise Refused(f"--procedure {run.settings.run.procedure}: '{of}' is of another network: {error}") from None
    return {}


def take_ticket(
    run: Experiment,
    *,
    number: Annotated[int, "at most 1000"] = 0,
    kind: Literal[
        "run",
        "random",
        "shuffle",
        "reinitialise",
        "permute",
        "permute_kept",
        "signed_permute",
        "signed_permute_kept",
        "signed_constant",
    ] = "run",
    to: str = "0it",
    pruned: Literal["zero", "initial", "grown", "grown_all"] = "zero",
) -> dict:
    """Put the ticket of a round in force, that of the last one if `number` is 0: its mask, and weights as they were at `to`.

    What `kind` other tickets there are the procedure `control` says, and what `pruned` weights are; 'run' is the ticket itself.
    """
    masks = unpacked(run, run.tickets.masks[number - 1])
    shrunk = unpacked(run, run.tickets.shrunk[number - 1]) if pruned.startswith("grown") else {}
    chance = torch.Generator().manual_seed((run.settings.run.seed << 10) + number)
    masks = other_masks(kind, masks, run.pruner, chance, number)
    put_masks(run.pruner, masks)
    rewind_to(run, to)
    if kind == "reinitialise":
        put_weights(run.model, fresh_weights(run))
        run.optimizer.state.clear()
    if pruned != "zero":
        hold_what_is_cut(run.pruner, pruned, masks, shrunk)
    if kind in KINDS:
        put_other_values(run.pruner, kind, masks, chance)
    if pruned == "grown_all":
        begin_at_zero(run.pruner, masks, shrunk)
    if kind in KINDS or pruned == "grown_all":
        run.optimizer.state.clear()
    run.team.same_([*run.model.parameters(), *run.model.buffers()])
    run.collapsed = tell_collapse(run)
    return {}


def keep_copy(run: Experiment) -> dict:
    """Keep the weights that training has come to, to compare them."""
    run.tickets.copies.append(weights_of(run.model))
    return {}


def connect(
    run: Experiment,
    *,
    split: str = "0it",
    points: Annotated[int, "at least 2", "at most 1000"] = 30,
    statistics: Literal["measured", "interpolated"] = "measured",
    batches: Annotated[int, "at least 1", "at most 1000000"] = 20,
) -> dict:
    """Measure the test error between each two of the copies that were kept. Returns the errors, and each pair's barrier."""
    number = min(batches, 2) if run.settings.run.dry_run else batches
    few = 2 if run.settings.run.dry_run else points
    pairs = [
        between(run, first, second, few, number if statistics == "measured" else 0)
        for first, second in combinations(run.tickets.copies, 2)
    ]
    put_weights(run.model, run.tickets.copies[-1])
    return {"connectivity": {"split": split, "statistics": statistics, "pairs": pairs}}
