"""This file puts a model.pt or an .onnx file to use: --evaluate tests it, --predict names the classes of image files.

It imports no pruning code, so that a model file is all that is needed.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

import models
import tasks
from deploy.export import examples, export
from deploy.onnx_file import OnnxNetwork
from runs.console import export_line, note, say_all
from settings.arguments import Settings
from settings.earlier import with_data_of
from settings.errors import Failed, Refused, one_line
from settings.paths import located
from tasks.images import normalised
from tasks.pictures import read_pictures, suffixes
from training.engine import Engine
from training.evaluation import evaluate

BEST = 5


def main(settings: Settings) -> None:
    """Do what --evaluate or --predict asks for."""
    # float32 unless --amp asks for less: a file has one accuracy, whatever the machine, and the one that --predict goes by
    engine = Engine.choose(settings.replace(amp=settings.engine.amp or "off").engine)
    if settings.use.predict:
        for line in predict(settings.use.predict[0], settings.use.predict[1:], engine.device):
            say_all(line)
    else:
        say_all(*test(settings, engine))


def predict(model: str, paths: list[str], device: str = "cpu") -> Iterator[str]:
    """Yield a line for each image file, in float32: its most probable classes, at most 5, with their probabilities.

    `paths` are image files, or folders of them. A file that cannot be read is named on stderr; the others are predicted, and
    Failed is raised at the end.
    """
    network = opened(model).to(device)
    card, files, unreadable = network.card, image_files(paths), 0
    for path in files:
        try:
            pixels = read_pictures([path], card.image_size, len(card.mean), card.fit)
        except Refused as error:
            unreadable += 1
            print(f"modeling.py: {one_line(str(error))}", file=sys.stderr)
            continue
        with torch.inference_mode():
            batch = normalised(pixels.to(device), torch.tensor(card.mean), torch.tensor(card.std))
            probabilities, numbers = network(batch)[0].softmax(0).topk(min(BEST, len(card.classes)))
        ranked = zip(numbers.tolist(), probabilities.tolist(), strict=True)
        yield f"{path}: " + ", ".join(f"{card.classes[number]} {probability:.4f}" for number, probability in ranked)
    if unreadable:
        raise Failed(f"{unreadable} of {len(files)} images could not be read")


def opened(path: str) -> models.Network | OnnxNetwork:
    """Return the network in a model.pt or in an .onnx file, which has its card as `.card`. Refused as by their readers."""
    return OnnxNetwork(path) if Path(path).suffix == ".onnx" else models.load(path)


def image_files(paths: list[str]) -> list[str]:
    """The image files that `paths` name; of a folder those in it, by name, whose type Pillow reads and that are not hidden."""
    types, files = suffixes(), []
    for path in map(Path, paths):
        inside = sorted(path.iterdir()) if path.is_dir() else []
        images = [file for file in inside if file.suffix.lower() in types and not file.name.startswith(".")]
        if path.is_dir() and not images:
            raise Refused(f"--predict: no image in '{path}'")
        files += map(str, images or [path])
    return files


def test(settings: Settings, engine: Engine) -> list[str]:
    """Return the lines of --evaluate: the measures on the test images, and a line for each file of --export.

    The images are normalised as the model file says. Refused if it does not know a class of the data.
    """
    network = opened(settings.use.evaluate).to(engine.device)
    card = network.card
    task = _test_data(settings, card, engine.device)
    split = task.as_known_to(card)
    if split is None:
        strange = ", ".join(sorted(set(task.classes) - set(card.classes))[:5])
        raise Refused(f"'{settings.use.evaluate}' knows no class {strange}: it has {', '.join(card.classes[:10])}")
    for line in task.notes:
        note(settings, line)
    precision = engine.precision
    if isinstance(network, OnnxNetwork):
        precision = f"{network.weights} by onnxruntime"
        note(settings, f"{card.arch} in an .onnx file, {precision} on the CPU")
    else:
        note(settings, f"{card.arch} with {sum(p.numel() for p in network.parameters())} parameters on {engine.device}")

    def predict(inputs):
        with engine.autocast():
            return network(inputs)

    result = evaluate(network, task, split, predict, engine.device, classes=card.classes)
    images = f"{result['images']} images"
    lines = [f"result test accuracy: {result[task.metric]:.2f}, loss {result['loss']:.4f} ({images}), {precision}"]
    lines += _class_lines(result)
    images = examples(task, settings)
    return lines + [export_line(export(network, path, images, card)) for path in settings.ending.export or ()]


def _test_data(settings: Settings, card: models.Card, device: str) -> tasks.Task:
    """Read the test images of the data set that the model file remembers, or of the one that was typed. Refused as by it."""
    model, typed = Path(settings.use.evaluate), settings.typed
    remembered = card.training.get("settings", {})
    if {"dataset", "data_dir"} & typed.keys():  # a split belongs to the folder that it was made of
        remembered = remembered | {"test_size": None}
    if "data_dir" in remembered:
        remembered = remembered | {"data_dir": located(remembered["data_dir"], model.parent, card.training.get("began_in"))}
    asked = with_data_of(settings, remembered)
    changes = {"image_size": card.image_size, "channels": len(card.mean), "fit": card.fit}
    try:
        return tasks.load_test(asked.replace(**changes).data, device=device, quiet=settings.run.quiet)
    except Refused as error:
        if asked is settings or "data_dir" in typed or "data_dir" not in remembered:
            raise
        raise Refused(f"{error} ('{model}' remembers '{asked.data.data_dir}': name another --data_dir)") from None


def _class_lines(result: dict) -> list[str]:
    """Return lines on the worst classes and the commonest confusions of a test."""
    rows = [f"{name} {accuracy:.2f} ({images})" for name, (accuracy, images) in result["classes"].items()]
    more = f", {len(rows) - BEST} more" if len(rows) > BEST else ""
    lines = [f"result classes, worst first, and their images: {', '.join(rows[:BEST])}{more}"]
    mistakes = [(images, true, said) for true, taken in result["confusions"].items() for said, images in taken.items()]
    if mistakes:
        mistakes.sort(key=lambda mistake: -mistake[0])
        told = ", ".join(f"{images} {true} for {said}" for images, true, said in mistakes[:BEST])
        lines.append(f"result confusions: {told}")
    return lines
