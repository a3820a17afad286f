"""A model.pt put to use: --evaluate and --predict. Nothing here imports pruning code."""

import torch

import models
from deploy.forms.onnx import export
from runs.console import export_line, note, say_all
from settings.errors import Refused
from tasks import classification
from tasks import images as data
from training.engine import autocast, choose_device
from training.evaluation import evaluate

BEST = 5


def main(settings) -> None:
    """Do what was asked."""
    choose_device(settings)
    if settings.predict:
        say_all(*predict(settings.predict[0], settings.predict[1:], settings.device))
    else:
        say_all(*test(settings))


def predict(model: str, images: list[str], device: str = "cpu") -> list[str]:
    """A line for each image file: the most probable classes with their probabilities."""
    network = models.load(model).to(device)
    card, lines = network.card, []
    pixels = data.read_images(images, card.image_size)
    with torch.inference_mode():
        for path, image in zip(images, pixels, strict=True):
            batch = data.normalised(image[None].to(device), torch.tensor(card.mean), torch.tensor(card.std))
            probabilities, places = network(batch)[0].softmax(0).topk(min(BEST, len(card.classes)))
            ranked = zip(places.tolist(), probabilities.tolist(), strict=True)
            lines.append(f"{path}: " + ", ".join(f"{card.classes[place]} {share:.4f}" for place, share in ranked))
    return lines


def test(settings) -> list[str]:
    """Accuracy and loss on a data set's test images, with the file's normalisation; then what --export asks for."""
    network = models.load(settings.evaluate).to(settings.device)
    card = network.card
    asked = card.training.get("settings", {})
    for name in ("dataset", "data_dir"):
        if name not in settings.typed:
            setattr(settings, name, asked.get(name, getattr(settings, name)))
    dataset = classification.load(
        settings.dataset, settings.data_dir, val_size=0.0, normalise="half", image_size=card.image_size, device=settings.device
    )
    dataset.mean, dataset.std = (torch.tensor(part, device=settings.device) for part in (card.mean, card.std))
    strange = sorted(set(dataset.classes) - set(card.classes))
    if strange:
        raise Refused(f"'{settings.evaluate}' knows no class {', '.join(strange[:5])}: it has {', '.join(card.classes[:10])}")
    place = torch.tensor([card.classes.index(name) for name in dataset.classes], device=settings.device)
    test_images = data.Images(dataset.test.pixels, place[dataset.test.labels])
    note(settings, f"{card.arch} with {sum(p.numel() for p in network.parameters())} parameters on {settings.device}")

    def predict(pixels):
        with autocast(settings)():
            return network(pixels)

    result = evaluate(network, dataset, test_images, predict)
    lines = [f"result test accuracy: {result['top1']:.2f}, loss {result['loss']:.4f} ({result['images']} images)"]
    sample = next(dataset.ordered(dataset.test, 16))[0]
    return lines + [export_line(export(network, path, sample)) for path in settings.export or ()]
