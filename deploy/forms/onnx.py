"""A network as an ONNX or torch.export file, checked against PyTorch before it is kept."""

import contextlib
import io
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from deploy.latency import alternate
from models import Network
from runs.storage import replace, unused
from settings.errors import Failed

LARGEST_DIFFERENCE = 1e-4
# onnxruntime's blocked kernels want multiples of 16; filling up to them pays where it does not double the work, as
# measured on ResNet-56 and VGG-16
BLOCK, WORTH = 16, 2


def export(network: Network, path: str, images: torch.Tensor) -> dict:
    """Write the network, batch norm folded, to a .onnx or .pt2 file that takes any number of images (n, 3, h, w).

    The file's own runtime (onnxruntime; PyTorch) must give what PyTorch gives on `images`, relative to the largest
    output, to within 1e-4: Failed otherwise, and nothing is written. Returns the difference and the bytes.
    """
    images = images.detach().cpu().float().contiguous()
    folded = network.folded().cpu()
    with torch.inference_mode():
        expected = folded(images)
    with tempfile.TemporaryDirectory() as place:
        draft = Path(place) / f"network{Path(path).suffix}"
        try:
            got = write_onnx(network, draft, images) if draft.suffix == ".onnx" else _write_pt2(folded, draft, images)
        except (RuntimeError, TypeError, ValueError) as error:
            raise Failed(f"'{path}' cannot be made: {' '.join(str(error).split())[:200]}") from None
        difference = float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
        if not difference <= LARGEST_DIFFERENCE:
            raise Failed(f"'{path}' would not be the same network: it differs by {difference:.1e} of the largest output")
        content = draft.read_bytes()
    target = unused(Path(path))
    replace(target, content)
    return {"file": str(target), "difference": difference, "bytes": len(content)}


def write_onnx(network: Network, path: Path, images: torch.Tensor) -> torch.Tensor:
    """Write an ONNX file, batch norm folded and the weights inside; what onnxruntime makes of the images."""
    folded, batch = _in_blocks(network.folded(1).cpu(), network.folded(BLOCK).cpu(), images), torch.export.Dim("n", min=1)
    with _silence():
        program = torch.onnx.export(
            folded, (images,), dynamo=True, dynamic_shapes=({0: batch},), input_names=["images"], output_names=["logits"]
        )
        program.save(str(path), external_data=False)
    return torch.from_numpy(session(path).run(None, {"images": images.numpy()})[0])


def _in_blocks(plain: Network, filled: Network, images: torch.Tensor) -> Network:
    """The network filled up to whole blocks of channels, where that is worth it."""
    work = []
    for network in (plain, filled):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            network(images[:1])
        work.append(counter.get_total_flops())
    return filled if work[1] <= WORTH * work[0] else plain


def _write_pt2(folded: Network, path: Path, images: torch.Tensor) -> torch.Tensor:
    with _silence():
        program = torch.export.export(folded, (images,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},))
        torch.export.save(program, str(path))
        return torch.export.load(str(path)).module()(images)


def session(path: Path):
    """An onnxruntime session on the CPU with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # idle threads that spin would take the cores from whoever runs next
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def onnxruntime_latency(whole: Network, smaller: Network, image_size: int, batches: tuple[int, ...]) -> list[dict]:
    """Milliseconds of "dense" and "compact" in onnxruntime on the CPU, measured in turns, for each size of a batch."""
    rows, sessions = [], {}
    with tempfile.TemporaryDirectory() as place:
        for name, network in (("dense", whole), ("compact", smaller)):
            path = Path(place) / f"{name}.onnx"
            write_onnx(network, path, torch.zeros(2, 3, image_size, image_size))
            sessions[name] = session(path)
        for batch in batches:
            images = np.zeros((batch, 3, image_size, image_size), dtype=np.float32)
            took = alternate({name: lambda s=s, x=images: s.run(None, {"images": x}) for name, s in sessions.items()})
            rows.append({name: {"ms": 1e3 * seconds} for name, seconds in took.items()})
    return rows


@contextlib.contextmanager
def _silence():
    """The exporters tell their progress; only their errors matter here."""
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
