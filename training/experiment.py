"""This file builds an experiment: all that exists before the first step, such as network, masks, data, optimiser and plan."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

import models
import tasks
from pruning import Learner, Pruner, accounting
from pruning.dropout import scale_dropout
from settings.arguments import Settings
from settings.errors import Refused
from settings.meaning import gate_that_learns, images_a_class
from settings.registry import ACTIONS, LEARNING_RATES
from tasks import Task
from training.averaging import Average
from training.best import Best
from training.build import build_optimizer, build_pruner, check_amounts
from training.capture import try_capture
from training.collapsing import tell_collapse
from training.elsewhere import tell
from training.engine import Engine, Stop
from training.evaluation import evaluate
from training.freezing import check_alone
from training.restoring import restore, state_of_run
from training.stages import Plan, Stage, plan_of
from training.starting import begin_with, meet
from training.students import Networks
from training.teacher import Teaching, teaching_of
from training.team import Team
from training.terms import build_regulariser, gate_penalties
from training.tickets import Tickets
from training.turns import steps_of


@dataclass
class Experiment:
    """An experiment holds everything that exists before the first step.

    `plan` holds the stages of the run, `stage` is the number of the present one, and an epoch has `steps`. `results` gathers
    what the actions returned, `to_repair` what is kept for the layers that are cut later, `tickets` what is kept to rewind to
    and to compare, `collapsed` what was last said of collapse. `whole` counts the network before, `networks` names those of
    the run. `teaching` is a teacher with its losses; `penalties`, by name, are terms of the loss, and `proximal` a step.
    `average` is that of --ema in the present stage, `best` what --keep_best keeps, `learning` the parameters that alone get a
    gradient while --freeze holds all others.

    `loss` is modeling.losses: it maps (run, inputs, targets) to the network's outputs and the terms of the loss. `losses` is
    the same function of (inputs, targets), and `predict` maps inputs to outputs; both are captured where --compile asks.
    """

    settings: Settings
    engine: Engine
    team: Team
    stop: Stop
    task: Task
    plan: Plan
    model: models.Network
    pruner: Pruner | Learner | None
    optimizer: torch.optim.Optimizer
    schedule: Callable[[float], float]
    whole: accounting.Count
    steps: int
    networks: Networks
    loss: Callable | None = None
    teaching: Teaching | None = None
    stage: int = 0
    results: dict = field(default_factory=dict)
    to_repair: dict = field(default_factory=dict)
    tickets: Tickets = field(default_factory=Tickets)
    collapsed: str = ""
    average: Average | None = None
    best: Best | None = None
    learning: list | None = None

    def __post_init__(self):
        self.whole_shapes = self.model.shapes()
        self.capture()

    def capture(self) -> None:
        """Make `network`, the terms of the loss and `predict` from model and stage as they are; a stage compiles as it begins."""
        model, engine, self.reg = self.model, self.engine, self.regulariser
        penalties, self.proximal = build_regulariser(self.reg, self.settings.training)
        self.penalties = penalties | gate_penalties(model)
        self.network = self.team.wrap(model)
        if self.teaching is not None:
            self.network = self.teaching.wrapped(self.network, self.team)

        def predict(inputs):
            with engine.autocast():
                return model(inputs)

        def forward(inputs, targets):
            return self.loss(self, inputs, targets)

        alone = self.team.size == 1
        self.predict, self.losses = (engine.compiled(function, alone) for function in (predict, forward))
        self.captured = not (engine.compile and self.loss)

    @property
    def now(self) -> Stage:
        """The present stage."""
        return self.plan.stages[self.stage]

    @property
    def regulariser(self) -> str:
        """The regulariser of the present stage."""
        return self.settings.training.reg if self.now.reg is None else self.now.reg

    def batches(self, epoch: int) -> Iterator:
        """The training batches of an epoch, as (inputs, targets): this process's part of each."""
        return self.task.batches(epoch, (self.team.rank, self.team.size), self.now.noise)

    def sample(self) -> Iterator:
        """The training images that criteria measure on, in batches: all, where the criterion takes so many of each class."""
        pruning = self.settings.pruning
        return self.task.sample(self.task.steps if images_a_class(pruning.prune_imp) else pruning.score_batches)

    def evaluate(self, split, by_class: bool = False) -> dict:
        """The task's measures over a split; of each class too, where that is asked for."""
        batches = 2 if self.settings.run.dry_run else None
        classes = self.task.classes if by_class else ()
        return evaluate(self.model, self.task, split, self.predict, self.engine.device, batches, self.team, classes)

    def learning_rate(self, epoch: int, step: int = 0) -> float:
        """The learning rate of a step; the epoch is counted through the run."""
        epochs_done = epoch - self.plan.first_epoch(self.stage) + step / self.steps
        return self.now.learning_rate(epochs_done, self.steps, self.schedule)

    def first_step(self, epoch: int) -> int:
        """The first step of an epoch; not 0 in the first epoch of a stage that starts in the middle of one."""
        return self.now.skip % self.steps if epoch == self.plan.first_epoch(self.stage) else 0

    def set_learning_rate(self, epoch: int, step: int) -> None:
        """Give every group of parameters the learning rate of this step, times the group's own scale."""
        rate = self.learning_rate(epoch, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        if self.teaching is not None:
            self.teaching.epoch.fill_(epoch + 1)

    def move_masks(self, epoch: int, step: int | None) -> None:
        """Let masks change, become fixed or stay, as the phase says: before a step, or with None behind an epoch's last one.

        All processes get the masks of the first.
        """
        if self.pruner is None or self.now.masks_stay:
            return
        epoch -= self.plan.first_epoch(self.stage)
        if self.teaching is not None and step is not None and self.pruner.has_begun(epoch, step):
            self.teaching.begin(self.model, self.team)
        if self.pruner.after_epoch(epoch) if step is None else self.pruner.before_step(epoch, step):
            self.team.same_([buffer for gate in self.pruner.gates.values() for buffer in gate.buffers()])
            self.pruner.overwrite()
            scale_dropout(self.model)
            self.collapsed = tell_collapse(self)

    def enter(self, number: int) -> None:
        """Go on to the stage of this number: carry out its actions, and add to `results` what they return."""
        self.stage = number
        with self.stop.at_once(f"before the stage {self.now.name}"):
            if self.teaching is not None and number > 0:
                self.teaching.begin(self.model, self.team)
            for action in self.now.enter:
                self.results |= ACTIONS.get(action)(self)
            if not gate_that_learns(self.settings):
                scale_dropout(self.model)  # an action may have cut
            self.begin_stage(begun=number > 0)

    def begin_stage(self, begun: bool) -> None:
        """Tell the pruner how long the stage is, and compile the passes. Raises Refused if no mask would ever be made in it."""
        if (self.teaching and self.teaching.count(self.now.distill, self.now.task)) or self.reg != self.regulariser:
            self.capture()
        if self.pruner is not None and self.now.epochs and not self.now.masks_stay:
            try:
                self.pruner.begin(self.now.epochs, self.steps, self.sample, self.task, 2 if self.settings.run.dry_run else None)
            except ValueError as error:
                raise Refused(f"--prune_freq, --prune_until: {error}") from None
        decay = self.settings.training.ema
        self.average = Average(self.model, decay) if decay and self.now.epochs else None
        if not self.captured:
            self.captured = True
            try_capture(self, begun, trains=self.now.epochs > 0)

    def go_on_with(self, network: models.Network) -> None:
        """Put this network, which has no masks, in place of the present one, with a fresh optimiser."""
        self.model, self.pruner = network, None
        if self.teaching is not None:
            self.teaching.follow(network)
        others = self.teaching.parameters if self.teaching else ()
        self.optimizer = build_optimizer(network, self.settings.training, self.engine.device, others)
        self.capture()

    def state(self) -> dict:
        """All that the next epoch depends on, as tensors and plain values: what a checkpoint holds."""
        return state_of_run(self)


def start(
    settings: Settings,
    loss: Callable | None = None,
    *,
    engine: Engine | None = None,
    stop: Stop | None = None,
    team: Team | None = None,
    state: dict | None = None,
) -> Experiment:
    """Build an experiment, and enter its first stage or, given a checkpoint's `state`, go on from there.

    `loss` is modeling.losses; a run that only evaluates needs none. The data is read late, since a network or masks that
    cannot be built raise Refused before that.
    """
    engine, team, stop = engine or Engine.choose(settings.engine), team or Team(), stop or Stop()
    engine.seed(settings.run.seed)
    settings, *weights, elsewhere = begin_with(settings, state)
    plan = plan_of(settings)
    check_alone(settings, plan, team)
    networks = Networks(settings, plan, state)
    model, whole = networks.build(*weights, elsewhere)
    model = model.to(engine.device, memory_format=torch.channels_last)
    pruner = build_pruner(model, settings) if networks.arch == networks.final else None
    teaching, known = teaching_of(settings, model, engine, state)
    coming = networks.look_ahead(teaching, engine.device)
    asked = {"batch_size": settings.training.batch_size, "seed": settings.run.seed, "quiet": settings.run.quiet}
    task = tasks.load(settings.data, device=engine.device, **asked)
    if team.size > 1:  # of pictures that do not fit into memory it is that of a sample, and processes may have other memory
        task.normalise_by(*team.share(task.normalisation))
    if state:
        task.check(state.get("data"))
    elif settings.network.init and (elsewhere is None or elsewhere.ours):
        meet(task, settings, model)
    if teaching is not None:
        teaching.meet(task, known)
    settings = settings.replace(augment=task.augment, device=engine.device, amp=engine.amp)
    steps = steps_of(task, settings)
    steps, plan = (min(steps, 2), plan.shortened(steps)) if settings.run.dry_run else (steps, plan.fitted(steps))
    check_amounts(task.batch, team.size, task.batch * min(settings.pruning.score_batches, task.steps), pruner or coming)
    optimizer = build_optimizer(model, settings.training, engine.device, teaching.parameters if teaching else ())
    schedule = LEARNING_RATES.get(settings.training.lr_schedule)
    parts = (settings, engine, team, stop, task, plan, model, pruner, optimizer, schedule, whole, steps, networks)
    run = Experiment(*parts, loss=loss, teaching=teaching)
    if state:
        restore(run, state)
    else:
        tell(run, elsewhere)
        run.enter(0)
    return run
