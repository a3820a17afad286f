"""This file holds the recipes: `--recipe NAME` sets the defaults of a published setting, or of the best one known here."""

import re

from settings.effects import gate_that_learns
from settings.registry import parse_call

RAW_SCOPE = "global(normalise='none', floor=0)"
# A recipe replaces defaults; flags that are typed win. It sets the method, never the engine.
RECIPES = {
    # what benchmarks/LOG.md found best, on ResNet-20 in short runs
    "best": {"prune_type": "structured", "prune_schedule": "cubic", "lr_schedule": "cosine", "weight_decay": 5e-4},
    # the description taken literally, with a regulariser that works
    "paper": {
        "prune_type": "structured",
        "prune_rate": 0.6,
        "prune_scope": RAW_SCOPE,
        "prune_gate": "weight",
        "prune_until": 1.0,
        "lr_schedule": "constant",
        "reg": "reg_cov",
        "odecay": 0.7,
    },
    # what the published code (heehehe/pruning-decorrelation) did; its regulariser was the constant 0. It differs in three
    # ways: there masks move up to epoch 225 however long the run is, here up to 226 / 300 of --epochs; there the last,
    # smaller batch of an epoch is trained on, here it is left out; there the classifier has torch's own initialisation,
    # here that of He et al., 2015, as all other layers have there too.
    "ksc2020": {
        "layers": 56,
        "batch_size": 256,
        "augment": "crop",
        "normalise": "half",
        "val_size": 0.0,
        "seed": 777,
        "prune_type": "structured",
        "prune_rate": 0.6,
        "prune_imp": "L1(reduce='mean')",
        "prune_scope": "global(normalise='none', floor=0, threshold='published')",
        "prune_gate": "weight",
        "prune_freq": "4it",
        "prune_until": 226 / 300,
        "lr_schedule": "constant",
        "reg": "none",
    },
}
# where the plain command differs from the paper's description: the flag, the paper's value, and what is done instead
CURES = {
    "reg": ("none", "the regulariser is live (the published one was the constant 0)"),
    "prune_gate": ("weight", "the mask gates a unit's output, behind batch norm"),
    "prune_scope": (RAW_SCOPE, "scores are comparable across layers, and every layer keeps a filter"),
    "lr_schedule": ("constant", "the learning rate drops at 50 % and 75 % of the run"),
    "prune_until": (1.0, "masks are fixed from this fraction of the run on"),
}


def departures(settings) -> list[str]:
    """Lines that say where a run differs from the paper's description; each one ends with the flag that undoes the difference."""
    lines = []
    for name, (published, words) in CURES.items():
        value = settings.flat[name]
        if name == "prune_scope":
            scope, options = parse_call(value)
            same = scope == "global" and options.get("normalise") == "none" and options.get("floor") == 0
        else:
            same = value == published
        by_rate = settings.pruning.prune_type == "structured" and not gate_that_learns(settings)
        no_matter = name.startswith("prune") and not by_rate
        no_matter |= name == "prune_until" and settings.pruning.prune_phase != "dynamic"
        if not (same or no_matter):
            lines.append(f"{words} ({name} {value}; undo: --{name} {quote(published)})")
    return lines


def quote(value) -> str:
    """A value as it is typed in a shell: in quotes where it holds more than letters, digits and dots."""
    return f'"{value}"' if re.search(r"[^\w.]", str(value)) else str(value)
