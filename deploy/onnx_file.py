"""This file reads .onnx files that this program wrote, and computes with them by onnxruntime."""

import contextlib
from pathlib import Path

import torch
from torch import Tensor, nn

from deploy.forms.onnx import DIGEST, digest, session
from models.files import card_from
from runs.storage import MOST
from settings.errors import Refused
from settings.files import Damaged, fitting, parse_json, read_whole
from settings.schema import ANYTHING, TEXT, TRUTH, Is, ListOf, Record, Unfit, check, number
from tasks import task_of_network
from tasks.images import as_bytes

WHAT = "ONNX file"
TYPE = Is("'uint8' or 'float32'", lambda it: it in ("uint8", "float32"))
DEVIATIONS = ListOf(number(0, 255, above=True), 1)
# what `deploy.export.facts` writes; only a file of --form says how its weights are held, and what it remembers of its run
FACTS = Record(
    {
        "input": Record({"type": TYPE}, others=ANYTHING),
        "normalisation": Record({"inside": TRUTH, "mean": ListOf(number(0, 255), 1), "std": DEVIATIONS}, others=ANYTHING),
        **dict.fromkeys(("image_size", "fit", "classes", "arch"), ANYTHING),
    },
    {"training": ANYTHING, "weights": TEXT, DIGEST: TEXT},
    others=ANYTHING,
)


class OnnxNetwork(nn.Module):
    """A network in an .onnx file: it maps normalised images to outputs, on the CPU, and has the file's `card`.

    `weights` says how they are held. Refused for a file that is damaged, or that says nothing of its images and classes.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        content = read_whole(path, WHAT, MOST)
        facts = _facts(content, path)
        with fitting(path, WHAT):
            check(facts, FACTS)
            normalisation = {name: facts["normalisation"][name] for name in ("mean", "std")}
            values = {name: facts[name] for name in ("arch", "classes", "image_size", "fit")}
            self.card = card_from(values | normalisation | {"training": facts.get("training", {})})
            if task_of_network(self.card.arch).metric == "mAP":
                raise Refused(f"'{path}' gives boxes and scores: of a detector a model.pt is tested and used")
            self.mean, self.std = torch.tensor(self.card.mean), torch.tensor(self.card.std)
            self.weights, self.takes_bytes = facts.get("weights", "float32"), facts["input"]["type"] == "uint8"
            if facts["normalisation"]["inside"] != self.takes_bytes:
                raise Unfit("it says neither that it takes bytes and normalises them, nor that it takes normalised floats")
            self.session = _session(content, path)
            self._check_shapes()

    def _check_shapes(self) -> None:
        """Raise Unfit unless the file takes and gives what it says."""
        size, channels = self.card.image_size, len(self.card.mean)
        shape, kind = ([size, size, channels], "uint8") if self.takes_bytes else ([channels, size, size], "float")
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or (inputs[0].type, inputs[0].shape[1:]) != (f"tensor({kind})", shape):
            raise Unfit(f"it does not take {kind} of shape {shape}, as it says")
        if len(outputs) != 1 or outputs[0].shape[1:] != [len(self.card.classes)]:
            raise Unfit("it has another number of classes than of outputs")

    def forward(self, inputs: Tensor) -> Tensor:
        images = as_bytes(inputs, self.mean, self.std) if self.takes_bytes else inputs.float().contiguous()
        (name,) = (part.name for part in self.session.get_inputs())
        return torch.from_numpy(self.session.run(None, {name: images.cpu().numpy()})[0]).to(inputs.device)


def _facts(content: bytes, path: str | Path) -> dict:
    """Return what an ONNX file says of itself. Damaged if it is not whole, Refused if it leads to other files."""
    import onnx

    try:
        model = onnx.load_model_from_string(content)
    except Exception:  # whatever protobuf raises for bytes that are no model
        raise Damaged(f"'{path}' is truncated or no {WHAT}") from None
    if any(value.data_location == onnx.TensorProto.EXTERNAL for value in model.graph.initializer):
        raise Refused(f"'{path}' is no {WHAT} of this program: its weights are in other files")
    facts = {}
    for entry in model.metadata_props:
        with contextlib.suppress(Damaged):  # what is no JSON was written by others
            facts[entry.key] = parse_json(entry.value.encode(), path, WHAT, ANYTHING)
    if DIGEST in facts and facts[DIGEST] != digest(model):
        raise Damaged(f"'{path}' is damaged")
    return facts


def _session(content: bytes, path: str | Path):
    """Open the file in onnxruntime. Refused, in its words, if it cannot."""
    try:
        return session(content)
    except Exception as error:  # a class of its own for each trouble
        raise Refused(f"'{path}' cannot be computed by onnxruntime: {' '.join(str(error).split())[:150]}") from None
