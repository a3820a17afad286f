"""This file makes the form that --form asks for, of a run's last network, and tests what its file gives back."""

from collections import Counter
from pathlib import Path

import torch

import models
from deploy.measure import card_of, remembered
from pruning.removal import ungated
from runs.console import note
from settings.registry import FORMS
from training.evaluation import evaluate
from training.experiment import Experiment


def make_form(run: Experiment, folder: Path) -> dict:
    """Make the form, write its file into `folder`, and return what summary.json says of it.

    "bits" are those of each part over all layers, whose sum, with the "header", is the file's size; "layers" has them by
    tensor. "dense_bytes" are the parameters that the run began with, as float32. "before" and "after" are the measures on
    the test images of the network that the form was made of, and of what `models.load` reads from the file.
    """
    settings, task = run.settings, run.task
    note(settings, f"making the form {settings.ending.form}")
    maker, before = FORMS.get(settings.ending.form), run.evaluate(task.test)
    form = maker(plain(run.model), task)
    path = folder / f"{maker.__name__}.pt"
    card = card_of(run, remembered(settings, folder))
    size, layers = form.save(path, card), form.bits()
    parts = sum((Counter(bits) for bits in layers.values()), Counter())
    network = models.load(path).to(run.engine.device)

    def predict(inputs):
        with run.engine.autocast():
            return network(inputs)

    after = evaluate(network, task, task.test, predict, run.engine.device)
    return {
        "name": settings.ending.form,
        "file": str(path),
        "bytes": size,
        "dense_bytes": 4 * run.whole.parameters,
        "bits": dict(parts) | {"header": 8 * size - sum(parts.values())},
        "layers": layers,
        "before": before[task.metric],
        "after": after[task.metric],
    }


@torch.no_grad()
def plain(network: models.Network) -> models.Network:
    """Return a copy without masks, whose weights are those in force: for masks on weights it computes the same."""
    copied = ungated(network).eval()
    for name, unit in network.all_units.items():
        copied.get_submodule(name).layer.weight.copy_(unit.weight_in_force)
    return copied
