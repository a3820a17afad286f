"""This file writes a network as an ONNX or torch.export file, and checks it against PyTorch before it is kept."""

import contextlib
import io
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from deploy.folding import folded
from deploy.latency import in_turns, summed_up
from models import Network
from runs.storage import replace, unused
from settings.errors import Failed

LARGEST_DIFFERENCE = 1e-4
# onnxruntime's blocked kernels want multiples of 16; filling up to them pays where it does not double the work, as
# measured on ResNet-56 and VGG-16
BLOCK, WORTH = 16, 2


def export(network: Network, path: str, images: torch.Tensor) -> dict:
    """Write the network, batch norm folded, to a .onnx or .pt2 file that takes any number of images.

    `images` (n, channels, height, width) are put through the file by its own runtime (onnxruntime or PyTorch) and through
    the network. Returns the file, the largest difference of outputs as a fraction of the largest output, and the bytes.
    Failed if that difference is above 1e-4 or the file cannot be made; nothing is written then.
    """
    images = images.detach().cpu().float().contiguous()
    form = folded(network).cpu()
    with torch.inference_mode():
        expected = outputs_of(form(images))
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / f"network{Path(path).suffix}"
        try:
            outputs = write_onnx(network, draft, images) if draft.suffix == ".onnx" else _write_pt2(form, draft, images)
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
    return {"file": str(target), "difference": difference, "bytes": len(content)}


def outputs_of(output: torch.Tensor | tuple | list) -> list[torch.Tensor]:
    """Return the outputs of a network, one or several, as a list."""
    return [output] if isinstance(output, torch.Tensor) else list(output)


def write_onnx(network: Network, path: Path, images: torch.Tensor) -> list[torch.Tensor]:
    """Write an ONNX file with batch norm folded and the weights inside; return what onnxruntime makes of the images."""
    form, batch = _in_blocks(folded(network, 1).cpu(), folded(network, BLOCK).cpu(), images), torch.export.Dim("n", min=1)
    names = ["logits"] if len(network.outputs) == 1 else list(network.outputs)
    with _silence():
        program = torch.onnx.export(
            form, (images,), dynamo=True, dynamic_shapes=({0: batch},), input_names=["images"], output_names=names
        )
        program.save(str(path), external_data=False)
    return [torch.from_numpy(output) for output in session(path).run(None, {"images": images.numpy()})]


def _in_blocks(plain: Network, filled: Network, images: torch.Tensor) -> Network:
    """Return `filled`, whose channels fill whole blocks, unless it does more than twice the work of `plain`."""
    work = []
    for network in (plain, filled):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            network(images[:1])
        work.append(counter.get_total_flops())
    return filled if work[1] <= WORTH * work[0] else plain


def _write_pt2(form: Network, path: Path, images: torch.Tensor) -> list[torch.Tensor]:
    """Write a torch.export file of a folded network; return what the loaded file makes of the images."""
    with _silence():
        program = torch.export.export(form, (images,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},))
        torch.export.save(program, str(path))
        return outputs_of(torch.export.load(str(path)).module()(images))


def session(path: Path):
    """Open an onnxruntime session for a file, on the CPU with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # threads that spin while idle would take the cores from whatever is timed next
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def onnxruntime_latency(whole: Network, smaller: Network, image_size: int, batches: tuple[int, ...]) -> list[dict]:
    """Return, for each batch size, the milliseconds of "dense" and "compact" in onnxruntime, measured in turns on the CPU."""
    rows, sessions, channels = [], {}, whole.input_channels
    with tempfile.TemporaryDirectory() as folder:
        for name, network in (("dense", whole), ("compact", smaller)):
            path = Path(folder) / f"{name}.onnx"
            write_onnx(network, path, torch.zeros(2, channels, image_size, image_size))
            sessions[name] = session(path)
        for batch in batches:
            images = np.zeros((batch, channels, image_size, image_size), dtype=np.float32)
            took = in_turns({name: lambda s=s, x=images: s.run(None, {"images": x}) for name, s in sessions.items()})
            rows.append({name: summed_up(seconds) for name, seconds in took.items()})
    return rows


@contextlib.contextmanager
def _silence():
    """Silence the exporters, which tell their progress; only their errors matter here."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
