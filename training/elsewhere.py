"""This file begins a run with weights from elsewhere: --init names a file that no run here has written, or torchvision's."""

import contextlib
import http.client
import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torchvision
from torch import Tensor

import models
from models.foreign import TORCHVISION as NAMES
from models.foreign import fitted, state_of, torchvision_name
from models.layouts import is_torchvisions
from runs.storage import read_elsewhere
from settings.arguments import Settings
from settings.earlier import with_data_of
from settings.errors import Refused
from settings.files import fitting
from settings.meaning import network_is_typed, pixels_of
from settings.paths import TORCHVISION
from settings.recipes import of_recipe
from settings.signatures import suggest
from tasks.images import NORMALISATIONS
from training.evaluation import evaluate

STEM = "stem='imagenet'"
BY = {"dataset": "the mean and deviation of these data", "half": "half the range of a byte"}
BY |= {"imagenet": "the mean and deviation of ImageNet", "caffe": "the mean of Caffe's VGG-16 alone"}


@dataclass
class Elsewhere:
    """Weights from elsewhere: `state` is a state dict, `where` what --init says, `classes` the classes' names, where known.

    `others` are the layers that tell classes apart where they did not fit, {name: filters there}, so that the network has kept
    its own. `ours` are those of a network of this program that knows another number of classes. torchvision's weights of the
    network are for images that are normalised as --normalise `wants`.
    """

    where: str
    state: Mapping[str, Tensor]
    classes: list[str] | None = None
    others: dict[str, int] = field(default_factory=dict)
    ours: bool = False
    wants: str = "imagenet"

    def give_to(self, network: models.Network) -> None:
        """Give a network these weights. Unfit, a ValueError, where they are of another one."""
        values, self.others = fitted(network, dict(self.state))
        network.take(values)

    def settings(self, asked: Settings) -> Settings:
        """Return the settings of a run that begins so.

        torchvision's weights bring their normalisation, unless --normalise says otherwise. What --teacher dense means is in no
        file that teaches: it is the network itself, as it begins.
        """
        changes = {"image_size": pixels_of(asked.network.arch) or asked.data.image_size}
        if asked.training.teacher == asked.network.init:
            changes["teacher"] = "dense"
        if self.where.startswith(TORCHVISION) and "normalise" not in asked.typed | of_recipe(asked.typed):
            changes["normalise"] = self.wants
        return with_data_of(asked, {}).replace(**changes)


def from_elsewhere(settings: Settings) -> Elsewhere | None:
    """Read the weights from elsewhere that --init names; None for a file of this program, or one that cannot be read.

    Raises Refused for a file without a state dict, where no flag says of which network it is, and where torchvision has no
    such weights, or they cannot be downloaded.
    """
    init = settings.network.init
    if init.startswith(TORCHVISION):
        return _of_torchvision(settings.network.arch, init)
    if not Path(init).is_file() or (content := read_elsewhere(Path(init))) is None:
        return None
    with fitting(init, "trained network"):
        state = state_of(content)
    if not network_is_typed(settings):
        raise Refused(f"--init: '{init}' is from elsewhere, and does not say of which network: type --arch")
    return Elsewhere(init, state, wants="caffe" if is_torchvisions(state) else "imagenet")


def _of_torchvision(arch: str, init: str) -> Elsewhere:
    """Return torchvision's weights of the network that --arch names. Raises Refused where there are none, or no network."""
    model, name = torchvision_name(arch), init.removeprefix(TORCHVISION)
    if model is None:
        options = {"vgg": "head='imagenet'", "ssd": "norm=False"}
        names = ", ".join(f"{word}({options.get(word[:3]) or STEM})" for word in NAMES)
        raise Refused(f"--init {init}: torchvision has no weights of {arch}: choose --arch from {names}")
    known = torchvision.models.get_model_weights(model).__members__
    if name not in known:
        raise Refused(f"--init {init}: torchvision's {model} has no weights '{name}': {suggest(name, known)}")
    weights, of_classes = known[name], known[name].meta["categories"]
    if not of_classes:
        raise Refused(f"--init {init}: these weights have no classifier")
    transforms = weights.transforms()  # a detector of torchvision normalises images itself
    values = (tuple(transforms.mean), tuple(transforms.std)) if hasattr(transforms, "mean") else NORMALISATIONS["caffe"]
    wants = next((word for word, known_values in NORMALISATIONS.items() if known_values == values), None)
    if wants is None:
        raise Refused(f"--init {init}: these weights are for images that are normalised as no --normalise does")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout has a format of its own
            state = weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, http.client.HTTPException, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:150]
        raise Refused(f"--init {init}: no download of {weights.url} ({reason}): fetch it, and type --init FILE") from None
    return Elsewhere(init, state, [word for word in of_classes if word != "__background__"], wants=wants)


def tell(run, elsewhere: Elsewhere | None) -> None:
    """Add to the notes of a run that begins with weights from elsewhere what they are, and what they measure before pruning.

    Where the network itself teaches, it does so from now on. Raises Refused where its classifier has learned nothing.
    """
    if elsewhere is None:
        return
    task, where = run.task, f"'{elsewhere.where}'"
    number, own, origin = len(elsewhere.state), task.outputs, "weights" if elsewhere.ours else "weights from elsewhere"
    if elsewhere.others:
        (first, *more), known = elsewhere.others.values(), len(elsewhere.classes or ())
        instead = f" instead of {known or first}" if known or not more else ""  # a detector has more filters than classes
        task.notes.append(
            f"{origin}, {where}: {number} tensors; the classifier is new, for {own} classes{instead}, "
            "so that nothing is measured before training"
        )
        if not run.plan.epochs:
            raise Refused(f"--epochs 0: the classifier of {where} does not fit, and the new one would learn nothing")
        if run.settings.training.teacher == "dense":
            raise Refused(f"--teacher dense: the classifier of {where} does not fit, and the new one cannot teach")
    else:
        task.notes.append(f"{origin}, {where}: {number} tensors; its classifier of {own} classes is kept")
        task.compare_names(elsewhere.classes, where)
    if elsewhere.ours:
        return
    line = f"images are normalised by {BY[run.settings.data.normalise]}"
    if run.settings.data.normalise != elsewhere.wants:
        line += f"; --normalise {elsewhere.wants} normalises them as torchvision's weights expect"
    task.notes.append(line)
    if not elsewhere.others:
        task.notes.append(_before(run))
    if run.teaching is not None and run.settings.training.teacher == "dense":
        run.teaching.begin(run.model, run.team)


def _before(run) -> str:
    """Return the line that tells the metric of the network as it begins, on the images where the run is validated."""
    task, few = run.task, 2 if run.settings.run.dry_run else None

    def predict(inputs):
        with run.engine.autocast():
            return run.model(inputs)

    measured = evaluate(run.model, task, task.valid or task.test, predict, run.engine.device, few, run.team)
    what, word = "training" if run.pruner is None else "pruning", "" if task.metric == "top1" else f"{task.word} "
    return f"before {what}: {word}{measured[task.metric]:.2f} % {'held out' if task.valid is not None else 'on the test set'}"
