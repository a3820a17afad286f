"""This file exports a network as an ONNX or torch.export file, and checks it against PyTorch before it is kept."""

import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from deploy.folding import folded
from deploy.forms.onnx import chosen_form, run_onnx, write_onnx
from deploy.forms.pt2 import run_pt2, write_pt2
from models import Card, Network
from models.layouts import default_boxes
from runs.storage import replace, unused
from settings.arguments import Settings
from settings.errors import Failed
from tasks import Task, task_of_network
from tasks.boxes import decoded
from tasks.images import normalised

LARGEST_DIFFERENCE = 1e-4
EXAMPLES = 16


class Boxes(nn.Module):
    """A detector that gives "boxes", (images, boxes, 4), and "scores", (images, boxes, classes), before any is suppressed."""

    outputs = ("boxes", "scores")

    def __init__(self, network: Network, pixels: int):
        super().__init__()
        self.network = network
        self.register_buffer("anchors", default_boxes(pixels))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return decoded(self.network(images), self.anchors)


class TakesBytes(nn.Module):
    """A network that takes pictures as bytes (images, height, width, channels), and normalises them itself."""

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]):
        super().__init__()
        self.network, self.outputs = network, network.outputs
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.network(normalised(images, self.mean, self.std))


def export(network: Network, path: str, images: Tensor, card: Card | None = None) -> dict:
    """Write the network, batch norm folded, to a .onnx or .pt2 file that takes any number of images.

    The file takes what `images` are: bytes (n, height, width, channels), which it normalises by the `card`, or normalised
    floats (n, channels, height, width). A detector gives boxes and scores; see `Boxes`. The card's facts are written into the
    file; see `facts`. The images are put through the file by its own runtime (onnxruntime or PyTorch) and through the network.
    Returns the file, the largest difference of outputs as a fraction of the largest output, the bytes, and in "form" what was
    chosen. Failed if that difference is above 1e-4 or the file cannot be made; nothing is written then.
    """
    images, suffix = images.detach().cpu().contiguous(), Path(path).suffix
    takes_bytes = images.dtype == torch.uint8
    form = folded(network).cpu()
    with torch.inference_mode():
        expected = outputs_of(complete(form, card, takes_bytes)(images))
    about = {} if card is None else facts(card, takes_bytes)
    # the example shapes the graph: none of the user's pictures is written, and two, because one would fix their number
    example = torch.zeros(2, *images.shape[1:], dtype=images.dtype)
    with tempfile.TemporaryDirectory() as folder:
        draft, choice = Path(folder) / f"network{suffix}", ""
        try:
            if suffix == ".onnx":
                form, choice = chosen_form(network, (*(images.shape[1:3] if takes_bytes else images.shape[2:]),))
                write_onnx(complete(form, card, takes_bytes), draft, example, about)
                outputs = run_onnx(draft, images)
            else:
                write_pt2(complete(form, card, takes_bytes), draft, example, about)
                outputs = run_pt2(draft, images)
        except (RuntimeError, TypeError, ValueError) as error:
            raise Failed(f"'{path}' cannot be made: {' '.join(str(error).split())[:200]}") from None
        pairs = zip(outputs, expected, strict=True)
        differences = [(made - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30) for made, wanted in pairs]
        difference = float(torch.stack(differences).max())  # unlike max(), this keeps a difference that is no number
        if not difference <= LARGEST_DIFFERENCE:
            raise Failed(f"'{path}' would not be the same network: it differs by {difference:.1e} of the largest output")
        content = draft.read_bytes()
    target = unused(Path(path))
    replace(target, content)
    takes = f"takes {'bytes' if takes_bytes else 'normalised floats'} ({', '.join(map(str, ('n', *images.shape[1:])))})"
    form = f"{takes}; {choice}" if choice else takes
    return {"file": str(target), "difference": difference, "bytes": len(content), "form": form}


def complete(form: nn.Module, card: Card | None, takes_bytes: bool) -> nn.Module:
    """Return what a file is made of: the folded network itself or, where it takes bytes, with the card's normalisation inside.

    A detector gives boxes and scores.
    """
    if card is not None and task_of_network(card.arch).metric == "mAP":
        form = Boxes(form, card.image_size)
    return TakesBytes(form, card.mean, card.std).eval() if takes_bytes else form.eval()


def example_of(card: Card, takes_bytes: bool) -> Tensor:
    """Return two images of the shape and type that a file takes, of zeros."""
    size, channels = card.image_size, len(card.mean)
    if takes_bytes:
        return torch.zeros(2, size, size, channels, dtype=torch.uint8)
    return torch.zeros(2, channels, size, size)


def examples(task: Task, settings: Settings) -> Tensor:
    """Return the test images by which an export is checked, in the form that --export_input asks for."""
    if settings.ending.export_input == "normalised":
        return next(task.ordered(task.test, EXAMPLES))[0]
    return task.examples(EXAMPLES)


def facts(card: Card, takes_bytes: bool) -> dict[str, str]:
    """Return what a file says of its network, as JSON by name: how pictures become inputs, and the names of the outputs."""
    size, channels = card.image_size, len(card.mean)
    inputs = ["n", size, size, channels] if takes_bytes else ["n", channels, size, size]
    values = {
        "input": {
            "type": "uint8" if takes_bytes else "float32",
            "shape": inputs,
            "channels": ["grey"] if channels == 1 else [*"RGB"],
        },
        "normalisation": {"inside": takes_bytes, "mean": card.mean, "std": card.std, "of": "bytes"},
        "image_size": size,
        "fit": card.fit,
        "classes": card.classes,
        "arch": card.arch,
    }
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}


def outputs_of(output: Tensor | tuple | list) -> list[Tensor]:
    """Return the outputs of a network, one or several, as a list."""
    return [output] if isinstance(output, Tensor) else list(output)
