"""This file makes the form that --form asks for, of a run's last network, and tests what its file gives back."""

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from deploy import measure
from deploy.export import LARGEST_DIFFERENCE, complete, example_of
from deploy.forms.form import Form
from deploy.forms.onnx import chosen_form, write_onnx
from models import Card, Network
from runs.console import note
from settings.errors import Failed
from settings.registry import FORMS
from tasks import Task
from training.evaluation import evaluate
from training.experiment import Experiment

CHECKED = 64  # images on which a file is compared with its form before it is kept


def make_form(run: Experiment, folder: Path) -> dict:
    """Make the form, write its file into `folder`, and return what summary.json says of it.

    "bits" are those of each part over all layers, whose sum, with the "header", is the file's size; "layers" has them by
    tensor. "dense_bytes" are the parameters that the run began with, as float32. "before" and "after" are the measures on
    the test images of the network that the form was made of, and of what is read from the file, both in float32 as
    --evaluate computes them; "same" says on how many of these "images" both say the same. Of an .onnx file there are also
    the "float_bytes" of the network's own, and the "speed" of both. Failed if the file does not compute what the form does.
    """
    settings, task = run.settings, run.task
    note(settings, f"making the form {settings.ending.form}")
    maker, network = FORMS.get(settings.ending.form), measure.plain(run.model)
    form = maker(measure.plain(run.model), task)
    path = folder / f"{maker.__name__}{form.suffix}"
    card, takes_bytes = measure.card_of(run, measure.remembered(settings, folder)), settings.ending.export_input == "bytes"
    size, layers = form.save(path, card, takes_bytes), form.bits()
    parts = sum((Counter(bits) for bits in layers.values()), Counter())
    inside = form.read(path)
    _check(form, inside, task, path)
    result = {
        "name": settings.ending.form,
        "file": str(path),
        **({"about": form.about} if form.about else {}),
        "bytes": size,
        "dense_bytes": 4 * run.whole.parameters,
        "bits": dict(parts) | {"header": 8 * size - sum(parts.values())},
        "layers": layers,
        **compared(network, inside, task, run.engine.device),
    }
    if path.suffix == ".onnx":
        run.stop.check("while measuring; --resume does it again")
        result |= beside_float32(network, path, card, takes_bytes)
    return result


@torch.no_grad()
def compared(network: Network, inside: Callable, task: Task, device: str) -> dict:
    """Measure a network and what was read from its file on the test images: "before", "after", "same" and "images"."""
    same = []

    def predict(inputs):
        outputs = inside(inputs)
        same.append(task.agreements(task.comparable(lambda _: outputs, inputs), task.comparable(network, inputs)))
        return outputs

    before, after = (evaluate(network, task, task.test, each, device) for each in (network, predict))
    return {"before": before[task.metric], "after": after[task.metric], "same": sum(same), "images": len(task.test)}


def beside_float32(network: Network, path: Path, card: Card, takes_bytes: bool) -> dict:
    """Write the network as --export does, and return that file's "float_bytes", and the "speed" of it beside the file at `path`.

    It is the form in float32 that is the fastest as measured, and it is not kept.
    """
    with tempfile.TemporaryDirectory() as folder:
        draft, example = Path(folder) / "float32.onnx", example_of(card, takes_bytes)
        form, _ = chosen_form(network, (card.image_size, card.image_size))
        write_onnx(complete(form, card, takes_bytes), draft, example, {})
        speed = measure.timed_files({"float32": draft, "form": path}, example[:1].numpy())
        return {"float_bytes": draft.stat().st_size, "speed": speed}


@torch.no_grad()
def _check(form: Form, inside: Callable, task: Task, path: Path) -> None:
    """Delete the file and raise Failed if what it gives differs from the form's network by more than the form's tolerance."""
    inputs, _ = next(iter(task.ordered(task.test, CHECKED)))
    pairs = zip(task.comparable(inside, inputs), task.comparable(form.network.eval(), inputs), strict=True)
    differences = [(made - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30) for made, wanted in pairs]
    difference, most = float(torch.stack(differences).max()), max(form.tolerance, LARGEST_DIFFERENCE)
    if not difference <= most:  # nor is a difference that is no number
        path.unlink()
        words = f"'{path}' would not compute what it should: it differs by {difference:.1e} of the largest output"
        raise Failed(words + form.cure)
