"""This file holds what benchmarks/step.py times in turns: this program's own step, and the published engine's.

The published engine waits for its turn in a process of its own: there malloc gives memory back to the system, as it did for
its authors' program.
"""

import multiprocessing
import tempfile
from contextlib import contextmanager
from pathlib import Path

import torch

import modeling
import models
from benchmarks.published import Published
from settings.arguments import parse
from settings.registry import DISTILLATIONS
from tasks.images import Images


def wait(device: str) -> None:
    """Wait for the work that a CUDA device was given; other devices have done theirs."""
    if device == "cuda":
        torch.cuda.synchronize()


class Own:
    """This program's own step, with the network, the data and the pruning that the flags ask for."""

    def __init__(self, arch: str, batch: int, device: str, flags: list[str]):
        data = ["--dataset", "digits", "--augment", "crop_flip", "--val_size", "0", "--quiet"]
        self.run = modeling.start(parse(["--arch", arch, "--batch_size", str(batch), "--device", device, *data, *flags]))
        if self.run.task.batch != batch:
            raise ValueError(f"only {self.run.task.batch} images for a batch of {batch}")
        self.meter = self.run.task.meter(device)
        self.model, self.batches = self.run.model.train(), iter(())
        self.penalty = self.run.engine.compiled(lambda: sum(penalty(self.model) for penalty in self.run.penalties.values()))
        if self.run.pruner is not None:
            self.run.pruner.update(0.6)

    def next(self):
        """The next batch; the epoch begins again when it has ended."""
        batch = next(self.batches, None)
        if batch is None:
            self.batches = self.run.batches(0)
            batch = next(self.batches)
        return batch

    def step(self, mark=lambda name: None) -> None:
        """A step of modeling.train_epoch; `mark` is told the end of each part of it."""
        inputs, targets = self.next()
        mark("data")
        with self.told(mark):
            outputs, terms = modeling.train_step(self.run, inputs, targets)
        self.meter.add(outputs, targets, terms)
        mark("metrics")

    @contextmanager
    def told(self, mark):
        """While this lasts, `mark` is told when the run's loss is known, and when its optimiser begins and ends a step."""
        run, losses = self.run, self.run.losses

        def and_tell(*batch):
            result = losses(*batch)
            mark("forward")
            return result

        hooks = [
            run.optimizer.register_step_pre_hook(lambda *_: mark("backward")),
            run.optimizer.register_step_post_hook(lambda *_: mark("optimiser")),
        ]
        run.losses = and_tell
        try:
            yield
        finally:
            run.losses = losses
            for hook in hooks:
                hook.remove()

    def regulariser(self) -> None:
        """Compute the regulariser alone, with its gradient."""
        self.run.optimizer.zero_grad(set_to_none=True)
        self.penalty().backward()

    def masks(self) -> None:
        """Score all filters and make their masks anew."""
        self.run.pruner.update(0.6)


class Forward:
    """The pass of a teacher alone: what distillation costs at the least, beside the student's own step."""

    def __init__(self, own: Own):
        self.own = own

    def step(self) -> None:
        """Let the teacher look at the next batch."""
        inputs, _ = self.own.next()
        with torch.no_grad(), self.own.run.engine.autocast():
            self.own.run.teaching.teacher(inputs)


def taught(arch: str, batch: int, device: str, flags: list[str]) -> dict:
    """A step with each loss of distillation.py, by its name, and the pass of the teacher, a network of the same kind."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.pt"
        network = models.build(arch, classes=10)
        models.save(file, network, models.Card(arch, [str(digit) for digit in range(10)], 32, [127.5] * 3, [127.5] * 3))
        chosen = {
            name: Own(arch, batch, device, [*flags, "--teacher", str(file), "--distill", name]) for name in DISTILLATIONS.entries
        }
    return {**chosen, "teacher's pass": Forward(chosen["KD"])}


def serve(line, arch: str, batch: int, images, device: str, workers: int, threads: int) -> None:
    """What the published engine's process does: a step for each message that is true, until one is false."""
    torch.set_num_threads(threads)
    engine = Published(arch, batch, images, device, workers)
    while line.recv():
        engine.step()
        wait(device)
        line.send(None)


class Apart:
    """The published engine in a process of its own, which waits for nothing but its turn."""

    def __init__(self, arch: str, batch: int, images, device: str, workers: int):
        self.line, theirs = multiprocessing.Pipe()
        images = Images(images.pixels.cpu(), images.labels.cpu())
        work = (theirs, arch, batch, images, device, workers, torch.get_num_threads())
        self.process = multiprocessing.get_context("spawn").Process(target=serve, args=work)
        self.process.start()
        theirs.close()

    def step(self) -> None:
        """Let it train a step, and wait for the end of it."""
        self.line.send(True)
        self.line.recv()  # EOFError if it ended

    def close(self) -> None:
        """End the process."""
        self.line.send(False)
        self.process.join()
