"""What every entry of a registry promises, checked in the same way for all of them."""

import json
import random
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from conftest import TINY_DATA, TwoBlocks, run_program

import modeling
import models

STEPS = [*TINY_DATA, "--epochs", "2", "--batch_size", "27", "--deterministic", "--quiet"]  # two epochs of two steps
PRUNED = ["--prune_type", "structured", "--prune_rate", "0.3"]


def differences(one, other, place: str = "") -> list[str]:
    """The places where two nested records of tensors and plain values differ."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [place]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{place}: {one.keys() ^ other.keys()}"]
        return [line for name in one for line in differences(one[name], other[name], f"{place}/{name}")]
    if isinstance(one, list | tuple):
        return differences(dict(enumerate(one)), dict(enumerate(other)), place)
    return [] if one == other else [place]


def records(folder: str) -> dict:
    """All that a run leaves but for what a clock wrote: the rows, and the state that a next epoch would begin with."""
    rows = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    state = torch.load(Path(folder, "checkpoint.pt"), weights_only=True)
    for row in (*rows, *state["rows"]):
        del row["seconds"], row["images_per_second"]
    for layer in state["results"].get("reconstruction", ()):
        del layer["seconds"]
    return {"rows": rows, **state}


def trains_and_resumes(folder: Path, monkeypatch, *flags, network=TwoBlocks, at: int = 1) -> dict:
    """Trains by the program in a folder, and goes on once more from what it held before the epoch `at`: the records.

    Both must end in the same tensors. `network` builds what is trained, of so many `classes`, whatever the flags name;
    None leaves that to them. Masks must have cut something.
    """
    monkeypatch.chdir(folder)
    train = modeling.train_epoch

    def copies_before(run, epoch, bar):
        if epoch == at and not Path("part").exists():
            shutil.copytree("whole", "part")
        return train(run, epoch, bar)

    with monkeypatch.context() as patch:
        if network is not None:
            patch.setattr(models, "build", lambda _, classes=10, **__: network(classes=classes))
        patch.setattr(modeling, "train_epoch", copies_before)
        run_program(*STEPS, *flags, "--out_dir", "whole")
        assert len(Path("part", "metrics.jsonl").read_text().splitlines()) == at
        run_program("--resume", "part", "--quiet")
    whole = records("whole")
    assert differences(whole, records("part")) == []
    assert all(torch.isfinite(value).all() for value in whole["model"].values())
    if "--prune_type" in flags:
        assert whole["rows"][-1]["cut"] > 0
    return whole


@contextmanager
def unchanged(network=None):
    """Nothing of the surroundings changes within: no random state, and of a network no value, gradient, switch or mode."""

    def surroundings():
        numpy_state = np.random.get_state()
        state = {"torch": torch.get_rng_state(), "numpy": (numpy_state[1].tolist(), numpy_state[2]), "random": random.getstate()}
        if network is not None:
            parameters = dict(network.named_parameters())
            state["values"] = {name: value.clone() for name, value in network.state_dict().items()}
            state["gradients"] = {name: None if p.grad is None else p.grad.clone() for name, p in parameters.items()}
            state["requires_grad"] = {name: p.requires_grad for name, p in parameters.items()}
            state["modes"] = {name: module.training for name, module in network.named_modules()}
        return state

    before = surroundings()
    yield
    assert differences(before, surroundings()) == []
