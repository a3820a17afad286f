"""This file puts a model.pt to use: --evaluate tests it, --predict names the classes of image files.

It imports no pruning code, so that a model file is all that is needed.
"""

import torch

import models
import tasks
from deploy.forms.onnx import export
from runs.console import export_line, note, say_all
from settings.arguments import Settings
from settings.errors import Refused
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
    remembered = {name: card.training.get("settings", {}).get(name) for name in ("dataset", "data_dir")}
    asked = {name: value for name, value in remembered.items() if value is not None and name not in settings.typed}
    data = settings.replace(
        **asked, val_size=0.0, normalise="half", image_size=card.image_size, channels=len(card.mean), fit=card.fit
    ).data
    task = tasks.load(data, batch_size=settings.training.batch_size, seed=settings.run.seed, device=engine.device)
    split = task.as_known_to(card)
    if split is None:
        strange = ", ".join(sorted(set(task.classes) - set(card.classes))[:5])
        raise Refused(f"'{settings.use.evaluate}' knows no class {strange}: it has {', '.join(card.classes[:10])}")
    note(settings, f"{card.arch} with {sum(p.numel() for p in network.parameters())} parameters on {engine.device}")

    def predict(inputs):
        with engine.autocast():
            return network(inputs)

    result = evaluate(network, task, split, predict, engine.device)
    lines = [f"result test accuracy: {result[task.metric]:.2f}, loss {result['loss']:.4f} ({result['images']} images)"]
    sample = next(task.ordered(task.test, 16))[0]
    return lines + [export_line(export(network, path, sample)) for path in settings.ending.export or ()]
