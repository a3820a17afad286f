"""A run is a plan of stages: each enters by some actions and then trains for some epochs."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from settings.errors import Refused


@dataclass(frozen=True)
class Stage:
    """A part of a run, as plain data.

    `enter` names the actions (training/actions.py) that are carried out before the first epoch, such as "remove". The
    learning rate is `lr` times the schedule's factor, which goes through `progress` of the schedule, after a linear rise
    over `warmup_epochs`. Before the stage is entered the checkpoint is kept under the name `keep`, if it has one. Once
    the stage has begun, the flags named in `fixed` may not change on --resume.
    """

    name: str
    epochs: int
    lr: float
    enter: tuple[str, ...] = ()
    progress: tuple[float, float] = (0.0, 1.0)
    warmup_epochs: float = 0.0
    keep: str | None = None
    fixed: tuple[str, ...] = ()

    def learning_rate(self, epochs_done: float, steps: int, schedule: Callable[[float], float]) -> float:
        """The learning rate of the step at this point of the stage; an epoch has `steps` of them."""
        risen = min((epochs_done + 1 / steps) / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0
        begin, end = self.progress
        return self.lr * risen * schedule(begin + (end - begin) * (epochs_done / self.epochs))

    def __str__(self) -> str:
        words = [f"stage {self.name}: {', '.join(self.enter)}, then " if self.enter else f"stage {self.name}: "]
        words.append(f"{self.epochs} epochs at learning rate {self.lr:g}" if self.epochs else "no epochs")
        return "".join(words)


class Plan:
    """The stages of a run in their order; epochs are counted through all of them."""

    def __init__(self, stages: list[Stage]):
        self.stages = stages

    @property
    def epochs(self) -> int:
        return sum(stage.epochs for stage in self.stages)

    def first_epoch(self, number: int) -> int:
        """The number of the first epoch of a stage, counted from 0 through the run."""
        return sum(stage.epochs for stage in self.stages[:number])

    def shortened(self) -> "Plan":
        """The plan of a dry run: one epoch a stage."""
        return Plan([replace(stage, epochs=min(stage.epochs, 1)) for stage in self.stages])

    def record(self) -> list[dict]:
        """The plan as plain values."""
        return [asdict(stage) for stage in self.stages]

    def check_progress(self, number: int, epochs: int) -> None:
        """Refused if a run that is in a stage, after this many epochs, has gone beyond the plan."""
        if number >= len(self.stages):
            raise Refused("the run has gone further than the plan that is asked for now")
        stage, done = self.stages[number], epochs - self.first_epoch(number)
        if done > stage.epochs:
            raise Refused(f"{done} epochs of {stage.name} are done already")
