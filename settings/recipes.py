"""This file holds the recipes: `--recipe NAME` sets the defaults of a published setting, or of the best one known here."""

import re

from settings.meaning import finds_counts, gate_that_learns, masks_stay
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
    # Network Slimming, Liu et al., 2017 (arXiv 1708.06519), as in the authors' code: VGG-19, 70 % of all scales
    "slimming": {
        "arch": "vgg19",
        "batch_size": 64,
        "lr": 0.1,
        "procedure": "slimming",
        "prune_type": "structured",
        "prune_rate": 0.7,
        "prune_imp": "bn_scale",
        "prune_scope": "global(normalise='none', threshold='published')",
        "reg": "bn_l1",
        "compact": True,
    },
    # Soft Filter Pruning, He et al., 2018 (arXiv 1808.06866), for CIFAR: drops at epochs 60, 120 and 160 of 200. The authors'
    # first epoch is at 0.01, here the rate rises to 0.1 over it.
    "sfp": {
        "layers": 56,
        "prune_type": "structured",
        "prune_rate": 0.3,
        "prune_imp": "L2",
        "prune_scope": "local",
        "prune_gate": "soft",
        "prune_until": 1.0,
        "optimizer": "sgd(nesterov=True)",
        "lr": 0.1,
        "weight_decay": 5e-4,
        "lr_schedule": "step(drops=(0.3, 0.6, 0.8), factor=0.2)",
        "warmup_epochs": 1.0,
    },
    # Dynamic Model Pruning with Feedback, Lin et al., 2020 (arXiv 2006.07253): the rate is whole at the second drop of the
    # learning rate. The mask is on the output of a filter, not on its weight; filters are compared as multiples of the mean.
    "dpf": {
        "layers": 56,
        "prune_type": "structured",
        "prune_imp": "L2",
        "prune_freq": "16it",
        "prune_schedule": "cubic(reach=0.75)",
        "prune_until": 0.75,
        "optimizer": "sgd(nesterov=True)",
        "lr": 0.2,
        "lr_schedule": "step",
    },
    # Learning both Weights and Connections, Han et al., 2015 (arXiv 1506.02626): single weights of a trained network go in
    # rounds, and what is left is trained on from its values, with L2. The paper cuts 89 to 92 %.
    "han2015": {
        "prune_type": "unstructured",
        "prune_rate": 0.9,
        "prune_scope": "deviation",
        "prune_phase": "iterative(rounds=5)",
        "prune_until": 1.0,
        "weight_decay": 5e-4,
        "lr_schedule": "constant",
    },
}
# how many times smaller a recipe's learning rate is than that of the run in --init
RETRAINS = {"han2015": 10}
# what a recipe for trained networks says otherwise without --init: half of the run is dense training at --lr
FROM_SCRATCH = {"han2015": {"prune_phase": "iterative(rounds=5, start=0.5)", "lr_schedule": "step(drops=(0.5,))"}}
# what a recipe says otherwise where single weights or kernels are cut: the authors compare raw weights
OF_WEIGHTS = {"dpf": {"prune_scope": "global(normalise='none')"}}
# where the plain command differs from the paper's description: the flag, the paper's value, and what is done instead
CURES = {
    "reg": ("none", "the regulariser is live (the published one was the constant 0)"),
    "prune_gate": ("weight", "the mask gates a unit's output, behind batch norm"),
    "prune_scope": (RAW_SCOPE, "scores are comparable across layers, and every layer keeps a filter"),
    "lr_schedule": ("constant", "the learning rate falls during the run"),
    "prune_until": (1.0, "masks are fixed from this fraction of the run on"),
}


def of_recipe(typed: dict) -> dict:
    """The values, by flag, of the recipe that was typed, or none; without its network where another one was typed.

    Its --odecay is the weight of its own penalty, and of no other one.
    """
    values = RECIPES.get(typed.get("recipe"), {})
    if typed.get("prune_type", "structured") not in ("structured", "none"):
        values = values | OF_WEIGHTS.get(typed.get("recipe"), {})
    if "init" not in typed:
        values = values | FROM_SCRATCH.get(typed.get("recipe"), {})
    others = {"arch": {"arch", "layers", "init", "scratch"} & typed.keys()}
    others["odecay"] = typed.get("reg", "none").split("(")[0] not in ("none", values.get("reg"))
    return {name: value for name, value in values.items() if not others.get(name)}


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
        no_matter |= name == "prune_until" and masks_stay(settings) is not None
        no_matter |= name == "prune_scope" and finds_counts(settings.pruning.prune_imp)
        if not (same or no_matter):
            lines.append(f"{words} ({name} {value}; undo: --{name} {quote(published)})")
    return lines


def quote(value) -> str:
    """A value as it is typed in a shell: in quotes where it holds more than letters, digits and dots."""
    return f'"{value}"' if re.search(r"[^\w.]", str(value)) else str(value)
