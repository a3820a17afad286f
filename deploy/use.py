"""This file puts a model.pt to use: --evaluate tests it, --predict names the classes of image files.

It imports no pruning code, so that a model file is all that is needed.
"""

from pathlib import Path

import torch

import models
import tasks
from deploy.export import examples, export
from runs.console import export_line, note, say_all
from settings.arguments import Settings
from settings.errors import Refused
from settings.paths import located
from tasks.images import normalised
from tasks.pictures import read_pictures
from training.engine import Engine
from training.evaluation import evaluate

BEST = 5


def main(settings: Settings) -> None:
    """Carry out --evaluate or --predict and print its lines."""
    engine = Engine.choose(settings.engine)
    if settings.use.predict:
        say_all(*predict(settings.use.predict[0], settings.use.predict[1:], engine.device))
    else:
        say_all(*test(settings, engine))


def predict(model: str, images: list[str], device: str = "cpu") -> list[str]:
    """Return a line for each image file: its most probable classes, at most 5, with their probabilities."""
    network = models.load(model).to(device)
    card, lines = network.card, []
    pixels = read_pictures(images, card.image_size, len(card.mean), card.fit)
    with torch.inference_mode():
        for path, image in zip(images, pixels, strict=True):
            batch = normalised(image[None].to(device), torch.tensor(card.mean), torch.tensor(card.std))
            probabilities, numbers = network(batch)[0].softmax(0).topk(min(BEST, len(card.classes)))
            ranked = zip(numbers.tolist(), probabilities.tolist(), strict=True)
            lines.append(f"{path}: " + ", ".join(f"{card.classes[number]} {chance:.4f}" for number, chance in ranked))
    return lines


def test(settings: Settings, engine: Engine) -> list[str]:
    """Return the lines of --evaluate: the measures on the test images, and a line for each file of --export.

    The images are normalised as the model file says. Refused if it does not know a class of the data.
    """
    network = models.load(settings.use.evaluate).to(engine.device)
    card = network.card
    task = _test_data(settings, card, engine.device)
    split = task.as_known_to(card)
    if split is None:
        strange = ", ".join(sorted(set(task.classes) - set(card.classes))[:5])
        raise Refused(f"'{settings.use.evaluate}' knows no class {strange}: it has {', '.join(card.classes[:10])}")
    for line in task.notes:
        note(settings, line)
    note(settings, f"{card.arch} with {sum(p.numel() for p in network.parameters())} parameters on {engine.device}")

    def predict(inputs):
        with engine.autocast():
            return network(inputs)

    result = evaluate(network, task, split, predict, engine.device, classes=card.classes)
    lines = [f"result test accuracy: {result[task.metric]:.2f}, loss {result['loss']:.4f} ({result['images']} images)"]
    lines += _class_lines(result)
    images = examples(task, settings)
    return lines + [export_line(export(network, path, images, card)) for path in settings.ending.export or ()]


def _test_data(settings: Settings, card: models.Card, device: str) -> tasks.Task:
    """Read the test images of the data set that the model file remembers, or of the one that was typed. Refused as by it."""
    model, typed = Path(settings.use.evaluate), settings.typed
    remembered = card.training.get("settings", {})
    # a split belongs to the folder that it was made of
    names = ["dataset", "data_dir"] + ([] if {"dataset", "data_dir"} & typed.keys() else ["test_size"])
    asked = {name: remembered[name] for name in names if remembered.get(name) is not None and name not in typed}
    if "data_dir" in asked:
        asked["data_dir"] = located(asked["data_dir"], model.parent, card.training.get("began_in"))
    changes = {"image_size": card.image_size, "channels": len(card.mean), "fit": card.fit}
    try:
        return tasks.load_test(settings.replace(**asked, **changes).data, device=device)
    except Refused as error:
        if "data_dir" not in asked:
            raise
        raise Refused(f"{error} ('{model}' remembers '{asked['data_dir']}': name another --data_dir)") from None


def _class_lines(result: dict) -> list[str]:
    """Return lines on the worst classes and the commonest confusions of a test."""
    rows = [f"{name} {accuracy:.2f} ({images})" for name, (accuracy, images) in result["classes"].items()]
    more = f", {len(rows) - BEST} more" if len(rows) > BEST else ""
    lines = [f"result classes, worst first, and their images: {', '.join(rows[:BEST])}{more}"]
    if result["confusions"]:
        told = ", ".join(f"{images} {true} for {said}" for true, said, images in result["confusions"][:BEST])
        lines.append(f"result confusions: {told}")
    return lines
