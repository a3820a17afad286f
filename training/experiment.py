"""Everything that exists before the first step: network, masks, data, optimizer, and the pass that is captured."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import models
from pruning import Pruner, accounting
from pruning.removal import ungated
from runs.console import note
from settings.arguments import method
from settings.errors import Refused
from settings.registry import LEARNING_RATES, REGULARIZERS
from tasks import classification
from tasks import images as data
from training.build import build_network, build_pruner
from training.engine import Stop, autocast, choose_device, compiled, seed_everything
from training.evaluation import BATCH, evaluate
from training.optimisers import build_optimizer
from training.team import Team


@dataclass
class Experiment:
    """Everything that exists before the first step. `learning_rate` maps progress in [0, 1] to a factor of --lr.

    `batch` images a step, over all processes of the `team`; `whole` counts the network without masks; `after` says what
    was done after the last mask, once it was. `forward` maps images and labels to logits, loss and the weighted
    regulariser or None, `predict` images to logits: both captured where --compile asks for it.
    """

    settings: argparse.Namespace
    dataset: data.Dataset
    model: models.Network
    pruner: Pruner | None
    penalty: Callable | None
    optimizer: torch.optim.Optimizer
    learning_rate: Callable
    autocast: Callable
    batch: int
    steps: int
    stop: Stop
    whole: accounting.Count
    team: Team
    after: dict | None = None

    def __post_init__(self):
        self.capture()

    def capture(self) -> None:
        """Make `forward` and `predict` from the model as it is now."""
        model, penalty = self.model, self.penalty
        trained = self.team.wrap(model)

        def forward(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
            with self.autocast():
                logits = trained(images)
            loss = F.cross_entropy(logits.float(), labels)
            return logits, loss, None if penalty is None else penalty(model)

        def predict(images: Tensor) -> Tensor:
            with self.autocast():
                return model(images)

        alone = self.team.size == 1
        self.forward, self.predict = (compiled(part, self.settings, alone) for part in (forward, predict))

    def try_capture(self, begun: bool, trains: bool = True) -> None:
        """Compile evaluation now, and the training pass. Where that fails, go on without.

        Refused if --compile was typed and the run has not begun.
        """
        model, dataset, share = self.model, self.dataset, self.batch // self.team.size
        statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
        images = dataset.normalise(dataset.train.pixels[:1].expand(share, -1, -1, -1))
        tested, _ = next(dataset.ordered(dataset.valid or dataset.test, BATCH))
        failure = ""
        try:
            for _ in range(2):  # a CUDA graph is recorded at the second call
                if trains:
                    self.optimizer.zero_grad(set_to_none=True)
                    model.train()
                    _, loss, penalty = self.forward(images, dataset.train.labels[:share])
                    (loss if penalty is None else loss + penalty).backward()
                model.eval()
                with torch.no_grad():
                    self.predict(tested)
        except Exception as error:  # whatever a compiler may raise
            failure = " ".join(str(error).split())[:200] or type(error).__name__
        self.team.largest_(failed := torch.tensor(float(bool(failure))))
        if failed:
            failure = failure or "in another process"
            if "compile" in self.settings.typed and not begun:
                raise Refused(f"--compile: {failure}")
            note(self.settings, f"without torch.compile, which fails here: {failure}")
            self.settings.compile = False
            self.capture()
        for name, buffer in model.named_buffers():
            buffer.copy_(statistics[name])
        self.optimizer.zero_grad(set_to_none=True)

    def batches(self, epoch: int):
        """This process's part of an epoch's training batches."""
        settings, part = self.settings, (self.team.rank, self.team.size)
        return self.dataset.epoch(self.batch, settings.augment, settings.seed, epoch, part)

    def evaluate(self, images: data.Images) -> dict:
        """Accuracy and loss over a split."""
        batches = 2 if self.settings.dry_run else None
        return evaluate(self.model, self.dataset, images, self.predict, batches, self.team)

    def state(self) -> dict:
        """All that the next epoch depends on, as tensors and plain values. The data's order depends on the epoch alone."""
        cuda = torch.cuda.get_rng_state_all() if self.settings.device == "cuda" else []
        return {
            "settings": method(self.settings),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": [torch.get_rng_state(), *cuda],
            "after": self.after and {**self.after, "shapes": self.model.shapes()},
            "scratch": self.model.shapes() if self.settings.scratch else None,
        }

    def restore(self, state: dict) -> None:
        """Go on from a checkpoint. Refused if it is another run's."""
        for name, value in method(self.settings).items():
            there = state["settings"].get(name, value)
            if there != value:
                raise Refused(f"the checkpoint is another run's, with {name} {there}, not {value}")
        try:
            if after := state.get("after"):
                self._continue_after(after, len(state["rows"]))
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise Refused(f"the checkpoint is another network's: {' '.join(str(error).split())[:200]}") from None
        torch.set_rng_state(state["random"][0])
        if self.settings.device == "cuda" and len(state["random"]) == 1 + torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["random"][1:])

    def _continue_after(self, after: dict, done: int) -> None:
        """The checkpoint is of the smaller network, `done` the epochs of the run."""
        for name in ("epochs", "recalibrate", "finetune_lr"):
            if getattr(self.settings, name) != after[name]:
                raise Refused(f"fine-tuning has begun with --{name} {after[name]}: go on from masked.pt to change it")
        if (tuned := done - after["epochs"]) > self.settings.finetune_epochs:
            raise Refused(f"{tuned} epochs of fine-tuning are done already")
        smaller = ungated(self.model)
        smaller.reshape(after["shapes"])
        self.go_on_with(smaller.to(memory_format=torch.channels_last))
        self.after = {name: value for name, value in after.items() if name != "shapes"}

    def go_on_with(self, smaller: models.Network) -> None:
        """The smaller network takes the place of the masked one, with an optimizer of its own."""
        self.model, self.pruner = smaller, None
        self.optimizer = build_optimizer(smaller, self.settings)
        self.capture()
        if self.settings.compile:
            self.try_capture(begun=True, trains=self.settings.finetune_epochs > 0)


def start(settings, stop: Stop | None = None, team: Team | None = None, shapes: dict | None = None) -> Experiment:
    """Build everything, the data last: what cannot work is refused before it is read. `shapes` are a checkpoint's."""
    team = team or Team()
    choose_device(settings)
    seed_everything(settings)
    model, whole = build_network(settings, shapes)
    pruner = build_pruner(model, settings)
    dataset = classification.load(
        settings.dataset,
        settings.data_dir,
        val_size=settings.val_size,
        normalise=settings.normalise,
        image_size=settings.image_size,
        device=settings.device,
    )
    batch = min(settings.batch_size, len(dataset.train))
    if batch % team.size or batch // team.size < 2:
        raise Refused(f"--batch_size: {batch} images are not shared out evenly, two or more each, by {team.size} processes")
    steps = dataset.steps(batch)
    if settings.dry_run:
        settings.epochs, steps = 1, min(steps, 2)
        settings.finetune_epochs, settings.recalibrate = min(settings.finetune_epochs, 1), min(settings.recalibrate, 2)
    if pruner is not None:
        sample = partial(dataset.sample, batch, settings.score_batches, settings.seed)
        flags = "--score_batches"
        try:
            pruner.check_sample(batch * min(settings.score_batches, dataset.steps(batch)))
            flags = "--prune_freq, --prune_until"
            pruner.begin(settings.epochs, steps, sample)
        except ValueError as error:
            raise Refused(f"{flags}: {error}") from None
    penalised = settings.reg != "none" and REGULARIZERS.entry(settings.reg).kind != "proximal"
    penalty = REGULARIZERS.get(settings.reg, weight=settings.odecay) if penalised else None
    run = Experiment(
        settings,
        dataset,
        model,
        pruner,
        penalty=penalty,
        optimizer=build_optimizer(model, settings),
        learning_rate=LEARNING_RATES.get(settings.lr_schedule),
        autocast=autocast(settings),
        batch=batch,
        steps=steps,
        stop=stop or Stop(),
        whole=whole,
        team=team,
    )
    if settings.compile:
        run.try_capture(begun=bool(settings.resume))
    return run
