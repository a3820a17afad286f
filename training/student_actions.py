"""These actions belong to the noisy student: a network labels images, and a fresh one learns from them.

training/actions.py says what an action is.
"""

from typing import Annotated, Literal

import torch

from models.layers import initialise
from pruning.removal import ungated
from runs.console import generation_line, note
from settings.errors import Failed
from settings.meaning import students_of
from training.build import build_pruner
from training.evaluation import probabilities
from training.experiment import Experiment
from training.terms import check_regulariser


def pseudo_label(
    run: Experiment,
    *,
    number: Annotated[int, "at least 1", "at most 100"] = 1,
    labels: Literal["soft", "hard"] = "soft",
    confidence: Annotated[float, "below 1"] = 0.3,
    balance: bool = True,
    images_a_class: Annotated[int, "at most 1000000"] = 0,
    ratio: Annotated[int, "at least 1", "at most 100"] = 5,
    student: str = "",
) -> dict:
    """Let the network label the unlabelled images for the generation of this number, and put a fresh one in its place.

    That is `student`, as --arch names it, or one like the present network. The other options are those of the procedure
    `noisy_student`. Returns the records of the generations so far. Raises Failed if no
    image passes the filter.
    """
    records = measure_generation(run)["generations"]
    confidence = 0.0 if run.settings.run.dry_run else confidence  # two steps make nobody sure of anything
    wanted = {"labels": labels, "confidence": confidence, "balance": balance, "images_a_class": images_a_class, "ratio": ratio}
    try:
        facts = run.task.unlabelled.label(probabilities(run), **wanted)
    except ValueError as error:
        raise Failed(f"--procedure noisy_student, generation {number}: {error}") from None
    _begin_afresh(run, student)
    teacher = {"teacher": records[-1]["accuracy"]}
    return {"generations": [*records, {"generation": number, "taught": teacher | facts}]}


def measure_generation(run: Experiment) -> dict:
    """Measure what a generation has come to, where the run is validated. Returns the records of the generations so far."""
    records = list(run.results.get("generations", ())) or [{"generation": 0}]
    accuracy = run.evaluate(run.task.valid or run.task.test)[run.task.metric]
    records[-1] = records[-1] | {"accuracy": accuracy} | ({"network": run.networks.arch} if students_of(run.settings) else {})
    note(run.settings, generation_line(records[-1], run.task.word))
    return {"generations": records}


def _begin_afresh(run: Experiment, arch: str) -> None:
    """Put a whole network of fresh weights in place of the present one, of that name, with masks if it is the one to prune."""
    if arch in ("", run.networks.arch):
        network = ungated(run.model).cpu()  # where fresh weights are the same on every device
        network.reshape(run.whole_shapes)
    else:
        with torch.random.fork_rng(devices=[]):
            network, run.whole = run.networks.build(arch=arch)
        network, run.networks.arch = ungated(network), arch
        run.whole_shapes = network.shapes()
    initialise(network)
    check_regulariser(network, run.settings.training.reg)
    run.go_on_with(network.to(run.engine.device, memory_format=torch.channels_last))
    if run.settings.pruning.prune_type != "none" and run.networks.last is None:
        run.pruner = build_pruner(run.model, run.settings)
        run.capture()
