"""This file holds the action that factorises layers; training/actions.py says what an action is."""

import torch

from pruning import accounting
from pruning.factors import Choice, factorised
from pruning.removal import ungated
from runs.console import note
from runs.factor_lines import factor_line, factorised_line
from settings.errors import Refused
from settings.registry import FACTORISATIONS
from training.experiment import Experiment


def factorise(run: Experiment) -> dict:
    """Put factors in place of layers, as --factorise says; the optimiser begins anew.

    Returns the ranks and the relative error of each layer, why the others stay, and parameters, MACs and the metric before and
    after. A budget that cannot be met is Refused before anything was trained; afterwards all layers stay.
    """
    asked, size, task = run.settings.ending.factorise, run.task.inputs[1], run.task
    split = task.valid or task.test  # where the run is validated
    run.stop.check("before layers were factorised")
    whole = ungated(run.model)
    try:
        choice = FACTORISATIONS.get(asked)(whole, size)
    except ValueError as error:
        if run.stage == 0:
            raise Refused(f"--factorise {asked}: {error}") from None
        note(run.settings, f"WARNING --factorise {asked}: {error}; all layers stay")  # what was trained is kept
        choice = Choice({}, dict.fromkeys(whole.all_units, str(error)))
    accuracy, before = {"before": run.evaluate(split)[task.metric]}, accounting.dense(whole, size)
    smaller, records = factorised(whole, choice.ranks)
    run.go_on_with(smaller.to(memory_format=torch.channels_last))
    run.team.same_([*run.model.parameters(), *run.model.buffers()])
    after, accuracy["after"] = accounting.dense(run.model, size), run.evaluate(split)[task.metric]
    counts = {name: {"before": getattr(before, name), "after": getattr(after, name)} for name in ("parameters", "macs")}
    result = {"layers": records, "whole": choice.reasons, **counts, "accuracy": accuracy}
    for line in [
        *map(factor_line, records),
        *(f"layer {name} stays: {reason}" for name, reason in choice.reasons.items()),
        factorised_line(result, task.word),
    ]:
        note(run.settings, line)
    return {"factorisation": result}
