"""This file compiles the passes of a run before training begins, and goes on without where the compiler fails."""

from dataclasses import replace

import torch

from runs.console import note
from settings.errors import Refused
from training.evaluation import images_at_once
from training.turns import turns


def try_capture(run, begun: bool, trains: bool = True) -> None:
    """Compile a run's evaluation pass now and, if it `trains`, its training pass; where that fails, go on without.

    Raises Refused where it fails, --compile was typed, and the run has not `begun`: later, all training would be lost.
    The network, its gradients and the random state are afterwards as they were.
    """
    model, task = run.model, run.task
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    random, on_device = torch.get_rng_state(), torch.cuda.get_rng_state_all() if run.engine.device == "cuda" else []
    *_, inputs, targets = next(turns(run, run.plan.first_epoch(run.stage)))
    tested, _ = next(task.ordered(task.valid or task.test, images_at_once(task)))
    failure = ""
    try:
        for _ in range(2):  # a CUDA graph is recorded at the second call
            if trains:
                run.optimizer.zero_grad(set_to_none=True)
                model.train() if run.now.noise else model.train_without_dropout()
                _, terms = run.losses(inputs, targets)
                sum(terms.values()).backward()
            model.eval()
            with torch.no_grad():
                run.predict(tested)
    except Exception as error:  # whatever a compiler may raise
        failure = " ".join(str(error).split())[:200] or type(error).__name__
    run.team.largest_(failed := torch.tensor(float(bool(failure))))
    if failed:
        failure = failure or "in another process"
        if "compile" in run.settings.typed and not begun:
            raise Refused(f"--compile: {failure}")
        note(run.settings, f"without torch.compile, which fails here: {failure}")
        run.engine = replace(run.engine, compile=False)
        run.capture()
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    torch.set_rng_state(random)
    torch.cuda.set_rng_state_all(on_device)
    run.optimizer.zero_grad(set_to_none=True)
