"""This file reads the tickets that an earlier run has found, for the procedures that train them again."""

from runs.checkpoints import load_checkpoint
from settings.arguments import Settings
from settings.calls import call_text
from settings.errors import Refused
from settings.flags import defaults
from settings.meaning import takes_masks_of
from settings.paths import checkpoint_of
from settings.registry import parse_call
from training.tickets import packed

MASK = ".gate.mask"


def tickets_in(path: str) -> dict:
    """What the checkpoint of a run of rounds keeps, or of a run that cut fresh weights at its start: a single ticket.

    The weights that the latter began with are not kept: its "seed", from which they are drawn again, stands for them, and
    its state is None. Raises Refused where `path`, a run's folder or a checkpoint, is no such run.
    """
    state = load_checkpoint(checkpoint_of(path))
    tickets, asked = state.get("tickets", {}), defaults() | state["settings"]
    if tickets.get("masks") and tickets.get("states"):
        return tickets
    masks = {name.removesuffix(MASK): packed(mask != 0) for name, mask in state["model"].items() if name.endswith(MASK)}
    if masks and parse_call(asked["prune_phase"])[0] == "init" and asked["procedure"] == "once" and not asked["init"]:
        return {"states": {"0it": None}, "masks": [masks], "seed": asked["seed"]}
    raise Refused(
        f"'{path}' has no tickets: it is no run of --procedure rounds that has ended its first round, nor one that cut fresh"
        " weights by --prune_phase init"
    )


def with_tickets(settings: Settings) -> Settings:
    """The settings in which a procedure that takes an earlier run's masks tells how many there are, and where it rewound to."""
    if (path := takes_masks_of(settings)) is None:
        return settings
    kept, (name, options) = tickets_in(path), parse_call(settings.run.procedure)
    place, rounds = next(iter(kept["states"])), len(kept["masks"])
    if (seed := kept.get("seed", settings.run.seed)) != settings.run.seed:
        raise Refused(f"--seed {settings.run.seed}: '{path}' began with weights of seed {seed}: type --seed {seed}")
    if options.get("number", 0) > rounds:
        raise Refused(f"--procedure {settings.run.procedure}: '{path}' has {rounds} rounds")
    if options.get("pruned", "zero").startswith("grown") and len(kept.get("shrunk", ())) < rounds:
        raise Refused(
            f"--procedure {settings.run.procedure}: '{path}' does not say which weights grew, as --procedure rounds of"
            " --prune_type unstructured does: choose pruned='initial', or run it again"
        )
    options |= {"n": rounds, "to": place} if name == "control" else {"split": place}
    keep = load_checkpoint(checkpoint_of(path))["settings"].get("keep")  # what has no mask there has none here
    return settings.replace(procedure=call_text(name, options), keep=keep)
