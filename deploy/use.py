"""This file puts a model.pt or an .onnx file to use: --evaluate tests it, --predict says what it sees in image files.

It imports no pruning code, so that a model file is all that is needed.
"""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

import tasks
from deploy.export import examples, export
from deploy.onnx_file import OnnxNetwork
from deploy.opening import opened, without_masks
from models import Card
from runs.console import export_line, note, say_all
from runs.storage import replace, unused
from settings.arguments import Settings
from settings.earlier import with_data_of
from settings.errors import Failed, Refused, one_line
from settings.paths import located
from tasks.images import normalised
from tasks.pictures import read_picture, read_pictures, size_of, suffixes
from training.engine import Engine
from training.evaluation import evaluate

# of classes in pictures
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#aa0000")


def main(settings: Settings) -> None:
    """Do what --evaluate or --predict asks for."""
    # float32 unless --amp asks for less: a file has one accuracy, whatever the machine, and the one that --predict goes by
    engine = Engine.choose(settings.replace(amp=settings.engine.amp or "off").engine)
    if settings.use.predict:
        for line in predict(settings.use.predict[0], settings.use.predict[1:], engine.device, settings.use.draw):
            say_all(line)
    else:
        say_all(*test(settings, engine))


def predict(model: str, paths: list[str], device: str = "cpu", draw: str | None = None) -> Iterator[str]:
    """Yield lines for each image file, in float32: its most probable classes, or a line for each box that is found.

    `paths` are image files, or folders of them. With `draw`, a folder, the pictures are written there with the boxes. A file
    that cannot be read is named on stderr; the others are predicted, and Failed is raised at the end.
    """
    network = opened(model).to(device)
    files, unreadable = image_files(paths), 0
    folder = None if draw is None else drawing_folder(draw)
    if folder and tasks.task_of_network(network.card.arch).metric != "mAP":
        raise Refused(f"--draw: '{model}' names the classes of whole pictures, and finds no boxes")
    for path in files:
        try:
            said = predictions(network, path, device)
        except Refused as error:
            unreadable += 1
            print(f"modeling.py: {one_line(str(error))}", file=sys.stderr)
            continue
        yield from (f"{path}: {each.words}" for each in said)
        if folder:
            draw_boxes(path, said, network.card.classes, folder)
    if unreadable:
        raise Failed(f"{unreadable} of {len(files)} images could not be read")


@torch.inference_mode()
def predictions(network, path: str, device: str = "cpu") -> list[tasks.Said]:
    """What an opened network says of an image file. Refused if the file cannot be read."""
    card = network.card
    pixels, size = read_pictures([path], card.image_size, len(card.mean), card.fit), size_of(path)
    batch = normalised(pixels.to(device), torch.tensor(card.mean), torch.tensor(card.std))
    return tasks.task_of_network(card.arch).predicted(card, network(batch), size)


def drawing_folder(name: str) -> Path:
    """Return the folder for pictures with boxes, which is made. Refused if it cannot be."""
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"--draw: cannot write to '{name}': {error.strerror}") from None
    return Path(name)


def draw_boxes(path: str, said: list[tasks.Said], classes: list[str], folder: Path) -> Path:
    """Write a picture with the boxes that were found in it into a folder, as .png."""
    from PIL import Image

    file = unused(folder / f"{Path(path).stem}.png")
    content = io.BytesIO()
    Image.fromarray(with_boxes(path, said, classes).permute(1, 2, 0).numpy()).save(content, "PNG")
    replace(file, content.getvalue())
    return file


def with_boxes(path: str, said: list[tasks.Said], classes: list[str]) -> torch.Tensor:
    """A picture with the boxes that were found in it, bytes (3, height, width); a class has one colour everywhere."""
    from torchvision.utils import draw_bounding_boxes

    picture = torch.from_numpy(read_picture(path, None)).permute(2, 0, 1)
    if boxed := [each for each in said if each.box is not None]:
        colours = [COLOURS[classes.index(each.name) % len(COLOURS)] for each in boxed]
        labels = [" ".join(each.words.split(" at ")[0].split()) for each in boxed]
        picture = draw_bounding_boxes(picture, torch.tensor([each.box for each in boxed]), labels, colours, width=2)
    return picture


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
    task = test_data(settings, card, engine.device)
    split = task.as_known_to(card)
    if split is None:
        strange = ", ".join(sorted(set(task.classes) - set(card.classes))[:5])
        known = ", ".join(card.classes[:10])
        raise Refused(f"'{settings.use.evaluate}' knows no class {strange}: it has {known}{_unsaid(settings, card)}")
    for line in task.notes:
        note(settings, line)
    precision = engine.precision
    if isinstance(network, OnnxNetwork):
        precision = f"{network.weights} by onnxruntime"
        note(settings, f"{card.arch} in an .onnx file, {precision} on the CPU")
    else:
        # what cannot be exported is refused before it is measured
        exported = without_masks(network) if settings.ending.export else network
        note(settings, f"{card.arch} with {sum(p.numel() for p in network.parameters())} parameters on {engine.device}")

    def predict(inputs):
        with engine.autocast():
            return network(inputs)

    result = evaluate(network, task, split, predict, engine.device, classes=card.classes)
    lines = task.test_lines(result, precision)
    if not settings.ending.export:
        return lines
    images = examples(task, settings)
    return lines + [export_line(export(exported, path, images, card)) for path in settings.ending.export]


def _unsaid(settings: Settings, card: Card) -> str:
    """What is added to a refusal where the data set is a guess: an export remembers no run."""
    said = "dataset" in settings.typed or "dataset" in card.training.get("settings", {})
    return "" if said else f" (--dataset {settings.data.dataset} is a guess: '{settings.use.evaluate}' does not say it)"


def test_data(settings: Settings, card: Card, device: str) -> tasks.Task:
    """Read the test images of the data set that the model file remembers, or of the one that was typed. Refused as by it."""
    model, typed = Path(settings.use.evaluate), settings.typed
    folder = model if model.is_dir() else model.parent
    remembered = card.training.get("settings", {})
    if {"dataset", "data_dir"} & typed.keys():  # a split belongs to the folder that it was made of
        remembered = remembered | {"test_size": None}
    if "data_dir" in remembered:
        remembered = remembered | {"data_dir": located(remembered["data_dir"], folder, card.training.get("began_in"))}
    asked = with_data_of(settings, remembered)
    changes = {"image_size": card.image_size, "channels": len(card.mean), "fit": card.fit}
    try:
        return tasks.load_test(asked.replace(**changes).data, device=device, quiet=settings.run.quiet)
    except Refused as error:
        if asked is settings or "data_dir" in typed or "data_dir" not in remembered:
            raise Refused(f"{error}{_unsaid(settings, card)}") from None
        raise Refused(f"{error} ('{model}' remembers '{asked.data.data_dir}': name another --data_dir)") from None
