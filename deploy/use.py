"""A model.pt is put to use: --evaluate tests it, --predict names the classes of image files. No pruning code is imported."""

import torch

import models
import tasks
from deploy.forms.onnx import export
from runs.console import export_line, note, say_all
from settings.arguments import Settings
from settings.earlier import with_data_of
from settings.errors import Refused
from tasks.images import normalised, read_images
from training.engine import Engine
from training.evaluation import evaluate

BEST = 5


def main(settings: Settings) -> None:
    """Do what --evaluate or --predict asks for."""
    engine = Engine.choose(settings.engine)
    if settings.use.predict:
        say_all(*predict(settings.use.predict[0], settings.use.predict[1:], engine.device))
    else:
        say_all(*test(settings, engine))


def predict(model: str, images: list[str], device: str = "cpu") -> list[str]:
    """A line for each image file: the most probable classes with their probabilities."""
    network = models.load(model).to(device)
    card, lines = network.card, []
    pixels = read_images(images, card.image_size, len(card.mean))
    with torch.inference_mode():
        for path, image in zip(images, pixels, strict=True):
            batch = normalised(image[None].to(device), torch.tensor(card.mean), torch.tensor(card.std))
            probabilities, places = network(batch)[0].softmax(0).topk(min(BEST, len(card.classes)))
            ranked = zip(places.tolist(), probabilities.tolist(), strict=True)
            lines.append(f"{path}: " + ", ".join(f"{card.classes[place]} {share:.4f}" for place, share in ranked))
    return lines


def test(settings: Settings, engine: Engine) -> list[str]:
    """The measures on a data set's test images, with the file's normalisation; then what --export asks for."""
    network = models.load(settings.use.evaluate).to(engine.device)
    card = network.card
    settings = with_data_of(settings, card.training.get("settings", {}))
    data = settings.replace(val_size=0.0, normalise="half", image_size=card.image_size, channels=len(card.mean)).data
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
