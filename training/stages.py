"""This file defines the plan of a run: a list of stages, each of which carries out some actions and then trains."""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from settings.arguments import Settings
from settings.errors import Refused
from settings.meaning import factorises_first, phase_of, zero_filters
from settings.registry import ACTIONS, PROCEDURES, REGULARIZERS


@dataclass(frozen=True)
class Stage:
    """A stage is a part of a run, told in plain data.

    `enter` names the actions (training/actions.py) that are carried out before the first epoch, such as "remove". The
    learning rate is `lr` times a factor: that of --lr_schedule, of which the stage goes through the part `progress`, times
    a linear rise over `warmup_epochs`. If `keep` names a file, the checkpoint before the stage is kept in it. Once the
    stage has begun, the flags named in `fixed` may not change on --resume. With `masks_stay` only actions make masks. `reg`
    is the stage's regulariser, or "none"; None stands for that of --reg. So is `distill` for the losses of a teacher, and
    without `task` the terms of the task are not in the loss. Without `noise` images are augmented without random
    operations, and the network drops nothing.

    `remember` lists places such as "500it" or "2ep": before the step there the state is kept, to rewind to. A stage with a
    `start` begins at that place of its `epochs`, in the data as in the learning rate; once it is known how many steps an
    epoch has, `skip` holds the steps before it, and `epochs` those that are not left out as a whole.
    """

    name: str
    epochs: int
    lr: float
    enter: tuple[str, ...] = ()
    progress: tuple[float, float] = (0.0, 1.0)
    warmup_epochs: float = 0.0
    keep: str | None = None
    fixed: tuple[str, ...] = ()
    masks_stay: bool = False
    reg: str | None = None
    distill: str | None = None
    task: bool = True
    noise: bool = True
    remember: tuple[str, ...] = ()
    start: str = "0it"
    skip: int = 0

    def learning_rate(self, epochs_done: float, steps: int, schedule: Callable[[float], float]) -> float:
        """The learning rate of a step, `epochs_done` into the stage; an epoch has `steps` steps."""
        left_out = self.skip // steps  # whole epochs before the stage's start
        epochs_done, epochs = epochs_done + left_out, self.epochs + left_out
        risen = min((epochs_done + 1 / steps) / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0
        first, last = self.progress
        return self.lr * risen * schedule(first + (last - first) * (epochs_done / epochs))

    def fitted(self, steps: int) -> "Stage":
        """The stage where an epoch has `steps` steps. Raises Refused if it has no step at a place that it names."""
        for place in (self.start, *self.remember):
            if position(place, steps) >= max(self.epochs, 1) * steps:
                raise Refused(f"the stage {self.name} has no step {place}: it has {self.epochs} epochs of {steps} steps")
        skip = position(self.start, steps)
        return replace(self, skip=skip, epochs=self.epochs - skip // steps)

    def __str__(self) -> str:
        words = [f"stage {self.name}: {', '.join(self.enter)}, then " if self.enter else f"stage {self.name}: "]
        words.append(f"{self.epochs} epochs at learning rate {self.lr:g}" if self.epochs else "no epochs")
        words.append("" if self.start == "0it" else f", from {self.start} on")
        words.append(f", keeping the state of {' and '.join(self.remember)}" if self.remember else "")
        words.append("" if self.noise else ", without noise")
        words.append("" if self.reg is None else f", regulariser {self.reg}")
        words.append("" if self.distill is None else f", taught by {self.distill}")
        words.append("" if self.task else ", without the terms of the task")
        return "".join(words)


def position(place: str, steps: int) -> int:
    """The number of steps before a place such as "500it" or "2ep" of training; an epoch has `steps`. ValueError otherwise."""
    match = re.fullmatch(r"(\d{1,9})(it|ep)", place)
    if match is None:
        raise ValueError(f"'{place}' is no place in training: write it like '500it', in steps, or '2ep', in epochs")
    return int(match[1]) * (1 if match[2] == "it" else steps)


def around_the_cut(settings: Settings, enter: tuple[str, ...] = ()) -> list[Stage]:
    """The stages of --epochs epochs with one cut between whole epochs, by the actions of `enter`; only they move masks.

    With --prune_phase after a stage is before the cut, unless --prune_until is less than an epoch.
    """
    training = settings.training
    share = settings.pruning.prune_until if phase_of(settings).name == "after" else 0.0
    epochs, lr, before = training.epochs, training.lr, int(share * training.epochs + 1e-6)
    cut_at = before / epochs if epochs else 0.0  # in the progress of the run
    first = Stage("training", before, lr, progress=(0.0, cut_at), masks_stay=True)
    last = Stage("after the cut", epochs - before, lr, enter=enter, progress=(cut_at, 1.0), masks_stay=True)
    stages = [first, last] if before else [last]
    return [replace(stages[0], warmup_epochs=training.warmup_epochs), *stages[1:]]


def ending(settings: Settings, stages: list[Stage]) -> list[Stage]:
    """The stage that follows those of a procedure, if something is asked for the end of a run.

    Batch norm's statistics are measured anew, the pruned filters are taken out, unless the procedure does that itself, layers
    are factorised, and the smaller network is fine-tuned, with the regulariser of the stage before; with none where that takes
    out filters, as they can leave the network only once.
    """
    asked, removed = settings.ending, any("remove" in stage.enter for stage in stages)
    enter = [f"recalibrate(batches={asked.recalibrate})"] if asked.recalibrate else []
    enter += ["remove"] if asked.compact and not removed else []
    enter += ["factorise"] if asked.factorise and not factorises_first(settings) else []
    if not enter and not asked.finetune_epochs:
        return []
    fixed = ("epochs", "recalibrate", "finetune_lr")
    lr, epochs = asked.finetune_lr, asked.finetune_epochs
    reg = "none" if asked.compact and zero_filters(settings) else stages[-1].reg
    return [Stage("fine-tuning", epochs, lr, enter=tuple(enter), fixed=fixed, keep="masked.pt", reg=reg)]


class Plan:
    """A plan holds the stages of a run in their order; epochs are counted through all of them."""

    def __init__(self, stages: list[Stage]):
        self.stages = stages

    @property
    def epochs(self) -> int:
        return sum(stage.epochs for stage in self.stages)

    @property
    def last_trained(self) -> int:
        """The number of the last stage that has an epoch."""
        return max(number for number, stage in enumerate(self.stages) if stage.epochs)

    def first_epoch(self, number: int) -> int:
        """The number of the first epoch of a stage, counted from 0 through the run."""
        return sum(stage.epochs for stage in self.stages[:number])

    def shortened(self, steps: int) -> "Plan":
        """The plan of a dry run: one epoch a stage, from its first step. Raises Refused where `fitted` does."""
        self.fitted(steps)
        return Plan([replace(stage, epochs=min(stage.epochs, 1), start="0it") for stage in self.stages])

    def fitted(self, steps: int) -> "Plan":
        """The plan where an epoch has `steps` steps, of which stages that start later leave some out."""
        return Plan([stage.fitted(steps) for stage in self.stages])

    def record(self) -> list[dict]:
        """The plan as plain values, for config.json."""
        return [asdict(stage) for stage in self.stages]

    def check_progress(self, number: int, epochs: int) -> None:
        """Raise Refused if a run has gone beyond the plan that is in the stage of this number, after so many epochs."""
        if number >= len(self.stages):
            raise Refused("the run has gone further than the plan that is asked for now")
        stage, done = self.stages[number], epochs - self.first_epoch(number)
        if done > stage.epochs:
            raise Refused(f"{done} epochs of {stage.name} are done already")


def plan_of(settings: Settings, steps: int | None = None) -> Plan:
    """List the stages of --procedure, and behind them what is asked for the end of the run; fitted to `steps`, where known.

    Raises Refused for a plan that cannot be carried out: an action that does not exist is refused at the start, and not
    after the epochs before it.
    """
    procedure = settings.run.procedure
    stages = PROCEDURES.get(procedure)(settings)
    if settings.network.widths:
        stages = [replace(stages[0], enter=(f"narrow(like={tuple(settings.network.widths)!r})", *stages[0].enter)), *stages[1:]]
    if settings.network.pattern:
        first = (f"sparsify(like={tuple(settings.network.pattern)!r})", *stages[0].enter)
        stages = [replace(stage, masks_stay=True) for stage in (replace(stages[0], enter=first), *stages[1:])]
    if factorises_first(settings):
        stages = [replace(stages[0], enter=("factorise", *stages[0].enter)), *stages[1:]]
    plan = Plan([*stages, *ending(settings, stages)])
    try:
        for stage in plan.stages:
            for action in stage.enter:
                ACTIONS.check(action)
            if stage.reg not in (None, "none"):
                REGULARIZERS.check(stage.reg)
    except ValueError as error:
        raise Refused(f"--procedure {procedure}, stage {stage.name}: {error}") from None
    if not plan.epochs and settings.training.epochs:
        raise Refused(f"--procedure {procedure} trains for no epoch")
    return plan if steps is None else plan.fitted(steps)
