"""This file lets a trained network teach the one that is trained, by the losses of distillation.py."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

import models
import tasks
from models.seen import End, Seen, Watch, pairs, stage_ends
from models.shapes import TENSOR, check_values
from pruning.removal import Removal, ungated
from runs.storage import MOST, read_elsewhere
from settings.calls import parts_of
from settings.errors import Refused
from settings.files import read_whole
from settings.meaning import teaching_run
from settings.paths import checkpoint_of, model_of, taken_in_first
from settings.registry import DISTILLATIONS
from settings.schema import TEXT, DictOf, Maybe, Record, check
from training.earlier_networks import Known, read_network

STATE = Record({"file": Maybe(TEXT), "losses": DictOf(TENSOR), "own": Maybe(DictOf(TENSOR, 1))})


class Teaching:
    """What a teacher adds to the loss of its student: a term for each loss in `text`, as --distill names them.

    The `teacher` is in evaluation and has no gradient. Where it is a file's, `file` is the file's hash. Without a file it is
    the student's own network as it was before anything was cut from it: it teaches once `begin` has taken that. `modules` are
    the losses with parameters of their own. In a stage those of its losses count that `count` names. ValueError for two
    networks that cannot be compared as a loss wants to.
    """

    def __init__(self, text: str, student: models.Network, teacher: models.Network, side: int, engine, file: str | None = None):
        self.names, self.side, self.engine, self.file = parts_of(text), side, engine, file
        device = next(student.parameters()).device
        self.teacher = teacher.to(device, memory_format=torch.channels_last).requires_grad_(False).eval()
        self.active, self.epoch, self.scale, self.shift = file is not None, torch.ones((), device=device), None, None
        entries = [DISTILLATIONS.entry(name) for name in self.names]
        self.traits, self.rests = {trait for entry in entries for trait in entry.traits}, {}
        for text, entry in zip(self.names, entries, strict=True):
            chosen = {name: option.default for name, option in entry.options.items()} | DISTILLATIONS.check(text)[1]
            self.rests[entry.name] = math.prod(1 - chosen[option] for option in entry.traits.get("rest is the task's", ()))
        self.counted, self.task_counts, self.rest = list(self.rests), True, math.prod(self.rests.values())
        self.modules = nn.ModuleDict()
        self.follow(student)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters of the losses, for the optimiser."""
        return list(self.modules.parameters())

    def count(self, text: str | None, task: bool) -> bool:
        """Let the losses in `text` count from now on, None for all, and the terms of the task or not; say if that is new."""
        parts = self.names if text is None else [] if text == "none" else parts_of(text)
        names = [DISTILLATIONS.entry(part).name for part in parts]
        before, (self.counted, self.task_counts) = (self.counted, self.task_counts), (names, task)
        self.rest = math.prod(self.rests[name] for name in names)  # what the terms of the task are multiplied by
        return before != (names, task)

    def follow(self, student: models.Network) -> None:
        """Teach this network from now on; losses with parameters begin anew, as it may have other widths than the one before."""
        own, other = self._ends(student), self._ends(self.teacher)
        paired = pairs(own, other) if "maps" in self.traits else []
        self.nodes = [end.node for end, _ in paired]
        self.watches = [
            Watch(network, [pair[number] for pair in paired], ends[-1] if ends else None)
            for number, (network, ends) in enumerate(((student, own), (self.teacher, other)))
        ]
        self.before, self.modules, self.losses = self.modules, nn.ModuleDict(), {}
        for text in self.names:
            loss = DISTILLATIONS.get(text)
            name = DISTILLATIONS.entry(text).name
            if isinstance(getattr(loss, "func", loss), type):
                loss = self.modules[name] = loss(*self._examples(student)).to(self.epoch.device)
            self.losses[name] = loss
        self.called = self.losses

    def check(self, student: models.Network) -> None:
        """Raise ValueError where the losses cannot compare the teacher with this network, which is to be taught later."""
        Teaching(" + ".join(self.names), student, self.teacher, self.side, self.engine, self.file)

    def _ends(self, network: models.Network) -> list[End]:
        return stage_ends(network, self.side) if {"maps", "features"} & self.traits else []

    @torch.no_grad()
    def _examples(self, student: models.Network) -> list[Seen]:
        """Return what both networks show of one black image."""
        training, shown = student.training, []
        for network, watch in zip((student.eval(), self.teacher), self.watches, strict=True):
            weight = next(network.parameters())
            image = weight.new_zeros(1, network.input_channels, self.side, self.side)
            shown.append(watch.take(watch.looking(network)(image)))
        student.train(training)
        return shown

    def wrapped(self, forward: Callable, team) -> Callable:
        """Return the student's pass with what losses see kept; gradients of their parameters are averaged over the team."""
        self.called = {name: team.wrap(loss) if name in self.modules else loss for name, loss in self.losses.items()}
        self.look = self.watches[1].looking(self.teacher)
        return self.watches[0].looking(forward)

    def meet(self, task: tasks.Task, known: "Known | None") -> None:
        """Let the teacher see images normalised as when it was trained, and note it if it was trained on other classes."""
        if known is None:
            return
        task.compare_names(known.classes, "the teacher")
        if known.mean is not None and [known.mean, known.std] != [*map(list, task.normalisation)]:
            (mean, std), (own_mean, own_std) = (
                [torch.tensor(values, device=self.epoch.device).view(1, -1, 1, 1) for values in pair]
                for pair in (task.normalisation, (known.mean, known.std))
            )
            self.scale, self.shift = std / own_std, (mean - own_mean) / own_std

    def begin(self, student: models.Network, team) -> None:
        """Let a student whose network is still whole be taught, from now on, by what it is now."""
        if not self.active:
            self.teacher.load_state_dict(ungated(student).state_dict())
            team.average_statistics(self.teacher)
            self.active = True

    def added(self, terms: dict[str, Tensor], inputs: Tensor, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the terms of the task on a batch, times `rest`, and those of the losses that count by their names."""
        student = self.watches[0].take(outputs)
        if not self.active or not self.counted:
            return terms
        with torch.no_grad(), self.engine.autocast():
            shown = inputs if self.scale is None else torch.addcmul(self.shift, inputs, self.scale)
            teacher = self.watches[1].take(self.look(shown))
        student = replace(student, targets=targets, epoch=self.epoch)
        if self.rest != 1:
            terms = {name: self.rest * term for name, term in terms.items()}
        added = {name: self.called[name](student, teacher) for name in self.counted}
        return terms | added if self.task_counts else added

    @torch.no_grad()
    def carry(self, removal: Removal, before: torch.optim.Optimizer, fresh: torch.optim.Optimizer) -> None:
        """Give losses with parameters, and their part of the `fresh` optimiser, what stays of them after a removal."""
        for name, module in self.modules.items():
            earlier = dict(self.before[name].named_parameters())
            for path, parameter in module.named_parameters():
                dimension, kept = 0, None
                if path in module.reads:
                    dimension, number = module.reads[path]
                    kept = removal.channels.nodes[self.nodes[number]].to(parameter.device)

                def cut(value: Tensor, kept=kept, dimension=dimension) -> Tensor:
                    return value if kept is None else value.index_select(dimension, kept)

                parameter.copy_(cut(earlier[path]))
                for key, value in before.state.get(earlier[path], {}).items():
                    whole = isinstance(value, Tensor) and value.shape == earlier[path].shape
                    # laid out in memory as the parameter is, which a fused optimiser walks along with it
                    fresh.state[parameter][key] = torch.empty_like(parameter).copy_(cut(value)) if whole else value

    def state(self) -> dict:
        """What a checkpoint keeps of the teaching: the hash of the teacher's file, the losses' parameters, or the own network."""
        own = self.teacher.state_dict() if self.active and self.file is None else None
        return {"file": self.file, "losses": self.modules.state_dict(), "own": own}

    def take(self, saved) -> None:
        """Go on with what a checkpoint keeps. Unfit, a ValueError, where that is not of these networks and losses."""
        check(saved, STATE, "teaching")
        check_values(self.modules.state_dict(), saved["losses"], "teaching.losses")
        self.modules.load_state_dict(saved["losses"])
        if self.file is None and saved["own"] is not None:
            check_values(self.teacher.state_dict(), saved["own"], "teaching.own")
            self.teacher.load_state_dict(saved["own"])
            self.active = True

    def __str__(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.teacher.parameters())
        share = f", the task's terms times {self.rest:g}" if self.rest != 1 else ""
        who = "a network of" if self.active else "this network as it is before the first cut,"
        return f"taught by {who} {parameters} parameters: {' + '.join(self.names)}{share}"


def teaching_of(settings, student: models.Network, engine, state: dict | None) -> tuple[Teaching | None, Known | None]:
    """Return the teaching that --teacher and --distill ask for and what is known of the teacher's data; None without them.

    Raises Refused for a teacher that is no network or does not fit the student or the data, and, given a checkpoint's `state`,
    for one that is another than when the run began.
    """
    training, path = settings.training, teaching_run(settings)
    if (training.teacher is None) != (training.distill == "none"):
        raise Refused(f"--teacher {training.teacher} and --distill {training.distill}: the run began with another teacher")
    if training.teacher is None:
        return None, None
    if path is None:
        teacher, known, file = ungated(student), None, None
    else:
        source = model_of(path) if model_of(path).is_file() else checkpoint_of(path)
        try:
            file = hashlib.sha256(read_whole(source, "trained network", MOST)).hexdigest()
            _check_same(state, file, source)
            teacher, _, known = read_network(source)
        except Refused as error:
            elsewhere = source.is_file() and read_elsewhere(source) is not None
            raise Refused(f"--teacher: {taken_in_first(path) if elsewhere else error}") from None
        if len(teacher.outputs) > 1:
            raise Refused(f"--teacher: '{path}' has {len(teacher.outputs)} outputs: it does not name the class of an image")
        _check_data(known, path, settings)
    _check_same(state, file, "the network itself")
    try:
        return Teaching(training.distill, student, teacher, tasks.inputs_of(settings.data)[1], engine, file), known
    except ValueError as error:
        raise Refused(f"--distill {training.distill}: {error}") from None


def _check_same(state: dict | None, file: str | None, source: Path | str) -> None:
    """Raise Refused unless the teacher is the one with which the run of a checkpoint's `state` began."""
    saved = (state or {}).get("teaching")
    if state and not (isinstance(saved, dict) and saved.get("file") == file):
        raise Refused(f"{source} is not the teacher with which the run began: it has changed, or is another")


def _check_data(known: Known, path: str, settings) -> None:
    """Raise Refused for a teacher of another number of classes, or of images of another shape, than the student's."""
    classes, (channels, side, _) = tasks.outputs_of(settings.data), tasks.inputs_of(settings.data)
    if known.outputs != classes:
        raise Refused(f"--teacher: '{path}' tells {known.outputs} classes apart, and the student {classes}")
    if (known.channels, known.side) != (channels, side):
        theirs, own = (f"{c} x {n} x {n}" for c, n in ((known.channels, known.side), (channels, side)))
        raise Refused(f"--teacher: '{path}' reads images of {theirs}, and the student of {own}")
