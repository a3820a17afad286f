"""This file writes a network as an ONNX file, and runs and times such files by onnxruntime."""

import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deploy.folding import folded
from deploy.forms.quiet import silence
from deploy.latency import in_turns, summed_up
from models import Network

# the oldest versions that have the operators of these networks, so that older runtimes read the files
OPSET, IR = 18, 8
DIGEST = "digest"
# onnxruntime's blocked kernels want multiples of 16 channels; more than twice the work has never paid
BLOCK, MOST_WORK = 16, 2
# how much faster the blocks must be, for each size of a batch, to be worth a file that holds zeros
WORTH, TRIED = 1.1, (1, 16)


def write_onnx(form: nn.Module, path: Path, example: Tensor, about: dict[str, str]) -> None:
    """Write a folded network that takes any number of images like those of `example`, with the weights inside.

    `about` becomes the file's metadata, with a digest of all else. What the exporter knows of the machine's files is left
    out.
    """
    import onnx

    names = ["logits"] if len(form.outputs) == 1 else list(form.outputs)
    with silence():
        program = torch.onnx.export(
            form,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
            input_names=["images"],
            output_names=names,
            opset_version=OPSET,
        )
        program.save(str(path), external_data=False)
    model = onnx.load(str(path))
    graph = model.graph
    del graph.value_info[:]
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    model.ir_version = IR
    onnx.helper.set_model_props(model, about | {DIGEST: json.dumps(digest(model))})
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def digest(model) -> str:
    """Return what tells that an ONNX model is whole: the SHA-256 of all but its metadata."""
    bare = type(model)()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def run_onnx(path: Path, images: Tensor) -> list[Tensor]:
    """Return the outputs that onnxruntime gives for the images by the file."""
    return [torch.from_numpy(output) for output in session(path).run(None, {"images": images.numpy()})]


def session(path: Path | bytes):
    """Open an onnxruntime session for a file, or for its content, on the CPU with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # threads that spin while idle would take the cores from whatever is timed next
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = path if isinstance(path, bytes) else str(path)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def chosen_form(network: Network, size: tuple[int, int], batches: tuple[int, ...] = TRIED) -> tuple[Network, str]:
    """Return the folded copy to write, on the CPU, and in words why: with channels of zeros only if they are measured to pay.

    `size` is (height, width) of the images.
    """
    plain, filled = folded(network, 1).cpu(), folded(network, BLOCK).cpu()
    if plain.widths() == filled.widths():
        return plain, f"all channels are in blocks of {BLOCK}"
    image = torch.zeros(1, network.input_channels, *size)
    if _work(filled, image) > MOST_WORK * _work(plain, image):
        return plain, f"no channels of zeros: blocks of {BLOCK} would more than double the work"
    rows = timed({"plain": plain, "filled": filled}, size, batches)
    gains = [row["plain"]["ms"] / row["filled"]["ms"] for row in rows]
    words = f"{' and '.join(f'{gain:.2f}' for gain in gains)} times as fast, batches of {' and '.join(map(str, batches))}"
    if min(gains) >= WORTH:
        return filled, f"channels of zeros fill up blocks of {BLOCK}: {words}"
    return plain, f"no channels of zeros: blocks of {BLOCK} were {words}"


def onnxruntime_latency(whole: Network, smaller: Network, image_size: int, batches: tuple[int, ...]) -> list[dict]:
    """Return, for each batch size, the milliseconds of "dense" and "compact" in onnxruntime, measured in turns on the CPU."""
    size = (image_size, image_size)
    forms = {"dense": chosen_form(whole, size, batches)[0], "compact": chosen_form(smaller, size, batches)[0]}
    return timed(forms, size, batches)


def timed(forms: dict[str, Network], size: tuple[int, int], batches: tuple[int, ...]) -> list[dict[str, dict]]:
    """Return, for each batch size, what each folded network takes in onnxruntime, measured in turns; see `summed_up`."""
    image = np.zeros((1, next(iter(forms.values())).input_channels, *size), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.onnx" for name in forms}
        for name, form in forms.items():
            write_onnx(form, paths[name], torch.from_numpy(np.repeat(image, 2, axis=0)), {})
        return timed_files(paths, image, batches)


def timed_files(paths: dict[str, Path], image: np.ndarray, batches: tuple[int, ...]) -> list[dict[str, dict]]:
    """Return, for each batch size, what each file takes in onnxruntime, measured in turns; see `summed_up`.

    `image` is one of the images that all files take.
    """
    sessions, rows = {name: session(path) for name, path in paths.items()}, []
    for batch in batches:
        images = np.repeat(image, batch, axis=0)
        took = in_turns(
            {name: lambda opened=opened, x=images: opened.run(None, {"images": x}) for name, opened in sessions.items()}
        )
        rows.append({name: summed_up(seconds) for name, seconds in took.items()})
    return rows


def _work(network: Network, image: Tensor) -> int:
    """Return the floating-point operations of one pass."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(image)
    return counter.get_total_flops()
