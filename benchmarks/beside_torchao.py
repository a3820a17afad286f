"""This benchmark compares 8 bits in onnxruntime with those of torchao: `python benchmarks/beside_torchao.py --networks vgg16`.

Four forms of one network take turns, batch norm folded, with batches of 1 and 128 images: float32 and `--form int8` in
onnxruntime, and both by torch.compile, where torchao's PT2E quantises for the processor (X86InductorQuantizer, weights by
channel). Networks are fresh, and their ranges those of noise; of RUN, the folder of a run of modeling.py, both calibrate on
the same training images, and the accuracies on the test images are told too. It needs `pip install torchao` (0.18.0 was
measured) and a C++ compiler. Measure on a machine that does nothing else.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import torch
from torch._inductor import config as inductor
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

import models
from benchmarks.int8 import SIZE, Noise, fresh_network, last_network
from deploy.export import complete, example_of
from deploy.folding import folded
from deploy.forms.onnx import session, write_onnx
from deploy.latency import in_turns, summed_up
from runs.tables import write_table
from settings.errors import Failed, guard
from settings.registry import FORMS
from training.evaluation import evaluate

CALIBRATE, BATCHES = 10, (1, 128)


def by_torchao(network: models.Network, batches: list[torch.Tensor]) -> torch.nn.Module:
    """The network with torchao's rounding in it, calibrated on these batches; Failed if a layer stays in float32."""
    several = {0: torch.export.Dim("images", min=1, max=4096)}
    # torchao tells convolutions by where they come from, which only a strict export keeps
    seen = torch.export.export(network, (batches[0],), dynamic_shapes=(several,), strict=True).module()
    prepared = prepare_pt2e(seen, x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config()))
    for images in batches:
        prepared(images)
    rounded = convert_pt2e(prepared)
    found = sum("quantize_per_channel" in str(node.target) for node in rounded.graph.nodes)
    layers = sum(unit.layer.weight.numel() > 0 for unit in network.all_units.values())
    if found != layers:
        raise Failed(f"torchao put {found} of {layers} layers into 8 bits")
    return rounded


def by_onnxruntime(path: Path) -> Callable:
    """A file as a function of images."""
    opened = session(path)
    return lambda images: torch.from_numpy(opened.run(None, {"images": images.numpy()})[0])


@torch.no_grad()
def measured(network, card, task, run=None) -> dict[str, dict]:
    """The rows of a network by form: the milliseconds for each batch, and with a `run` the accuracies on its test images."""
    batches = [images for images, _ in task.sample(CALIBRATE)]
    with tempfile.TemporaryDirectory() as folder:
        float32, int8 = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        write_onnx(complete(folded(network), card, False), float32, example_of(card, False), {})
        FORMS.get(f"int8(calibrate={CALIBRATE})")(network, task).save(int8, card, takes_bytes=False)
        forms = {"onnxruntime, float32": by_onnxruntime(float32), "onnxruntime, 8 bits": by_onnxruntime(int8)}
    plain = folded(network)
    forms |= {"torch.compile, float32": torch.compile(plain, dynamic=False)}
    rounded = by_torchao(plain, batches)
    forms |= {"torch.compile, torchao's 8 bits": torch.compile(rounded, dynamic=False)}
    rows: dict[str, dict] = {name: {} for name in forms}
    for batch in BATCHES:
        images = torch.randn(batch, 3, SIZE, SIZE)
        for name, seconds in in_turns({name: partial(form, images) for name, form in forms.items()}).items():
            rows[name][f"ms, batch {batch}"] = f"{summed_up(seconds)['ms']:.2f}"
    if run is not None:
        tested = {**forms, "torch.compile, float32": plain, "torch.compile, torchao's 8 bits": rounded}
        for name, form in tested.items():
            rows[name]["test %"] = f"{evaluate(network, task, task.test, form, 'cpu')[task.metric]:.2f}"
    return rows


def main(argv: list[str]) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="*", default=["resnet20", "vgg16"], help="fresh ones (default resnet20 vgg16)")
    parser.add_argument("--runs", nargs="*", type=Path, default=[], metavar="RUN", help="folders of runs")
    parser.add_argument("--data_dir", help="where the images of the runs are (default: where they were)")
    options = parser.parse_args(argv)
    inductor.freezing = True  # weights become constants, as both engines may assume
    rows = []
    for name in options.networks:
        rows += [{"network": name, "form": form} | row for form, row in measured(*fresh_network(name), Noise).items()]
    for folder in options.runs:
        network, run, card = last_network(folder, options.data_dir)
        found = measured(network, card, run.task, run)
        rows += [{"network": str(folder), "form": form} | row for form, row in found.items()]
    columns = dict.fromkeys(column for row in rows for column in row)
    print(write_table([{column: row.get(column, "-") for column in columns} for row in rows], "markdown"))


if __name__ == "__main__":
    with guard("beside_torchao.py"):
        main(sys.argv[1:])
