"""This file gives a run the tensors of a checkpoint, after checks that torch does not make: it would take most of them unread."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from models.shapes import TENSOR, check_pass, check_values, told
from pruning.removal import ungated
from runs.checkpoints import arch_of
from settings.arguments import method
from settings.errors import Refused
from settings.meaning import holds_what_is_cut
from settings.registry import OPTIMISERS, parse_call
from settings.saved import counted
from settings.schema import ANYTHING, COUNT, DictOf, Is, ListOf, Record, Unfit, check, number, plain, whole
from training.best import Best, may_be_kept
from training.freezing import idle

# what the actions of a stage leave in the results of a run, which its closing lines tell
LEFT_BY = {"remove": "removal", "factorise": "factorisation", "measure_round": "rounds"}
OF_THE_DEVICE = {"params", "lr", "initial_lr", "fused", "foreach", "capturable", "differentiable"}


def state_of_run(run) -> dict:
    """Return all that the next epoch of a run depends on, as tensors and plain values: what a checkpoint holds.

    The order of the data depends on seed and epoch alone.
    """
    cuda = torch.cuda.get_rng_state_all() if run.engine.device == "cuda" else []
    shapes = run.model.shapes()
    return {
        "settings": counted(method(run.settings)),
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "random": [torch.get_rng_state(), *cuda],
        "stage": run.stage,
        "fixed": {name: run.settings.flat[name] for name in run.now.fixed},
        "shapes": None if shapes == run.whole_shapes else shapes,
        "began": run.whole_shapes,
        "arch": run.networks.arch,
        "programs": run.networks.programs,
        "results": run.results,
        "to_repair": run.to_repair,
        "tickets": run.tickets.plain(),
        "pseudo_labels": run.task.pseudo_labels(),
        "steps": run.steps,
        "data": run.task.record(),
        **({} if run.teaching is None else {"teaching": run.teaching.state()}),
        **({} if run.average is None else {"average": run.average.plain()}),
        **({} if run.best is None else {"best": run.best.plain()}),
    }


def restore(run, state: dict) -> None:
    """Let a run go on from a checkpoint. Refused if it is another run's, or if the plan that is asked for contradicts it."""
    for name, value in method(run.settings).items():
        if (saved := state["settings"].get(name, value)) != value:
            raise Refused(f"the checkpoint is another run's, with {name} {saved}, not {value}")
    if (arch := arch_of(state)) != run.networks.arch:
        raise Refused(f"the checkpoint is of a {arch}, and the run trains a {run.networks.arch} there")
    run.plan.check_progress(state["stage"], len(state["rows"]))
    run.stage, run.results = state["stage"], dict(state["results"])
    entered = {parse_call(action)[0] for stage in run.plan.stages[: run.stage + 1] for action in stage.enter}
    if lacking := {LEFT_BY[action] for action in entered & LEFT_BY.keys()} - run.results.keys():
        raise Refused(f"the checkpoint lacks what came of its stages: {', '.join(sorted(lacking))}")
    for name, value in state["fixed"].items():
        if run.settings.flat[name] != value:
            advice = f": go on from {run.now.keep} to change it" if run.now.keep else ""
            raise Refused(f"{run.now.name} has begun with --{name} {value}{advice}")
    if (first := run.plan.first_epoch(run.stage)) > len(state["rows"]):
        raise Refused(f"{run.now.name} has begun after {len(state['rows'])} epochs, and would now begin after {first}")
    try:
        take_network(run, state)
        run.to_repair = what_to_repair(run, state)
        run.tickets.take(state.get("tickets", {}), run, len(state["rows"]))
        if "pseudo_label" in entered:
            run.task.unlabelled.take(state.get("pseudo_labels"), run.task.outputs)
        run.begin_stage(begun=True)
        take_averages(run, state)
        take_random(state["random"], run.engine.device)
    except ValueError as error:
        raise Refused(f"the checkpoint is another network's: {' '.join(str(error).split())[:200]}") from None


def take_network(run, state: dict) -> None:
    """Give a run the network and the optimiser of a checkpoint. Unfit, a ValueError, where they are not of this run."""
    if state["shapes"] is not None or "removal" in state["results"]:  # which may have found nothing to take out
        smaller = ungated(run.model)
        smaller.reshape(state["shapes"] or run.whole_shapes)
        check_pass(smaller, run.task.inputs)
        run.go_on_with(smaller.to(memory_format=torch.channels_last))
    if holds_what_is_cut(run.settings):
        for name, gate in run.pruner.gates.items():
            gate.hold(torch.zeros_like(run.pruner.units[name].weight.detach()))
    run.model.take(state["model"])
    if run.teaching is not None:
        run.teaching.take(state["teaching"])
    begun = len(state["rows"]) > run.plan.first_epoch(run.stage)
    take_optimizer(run.optimizer, run.settings.training, state["optimizer"], begun, idle(run, len(state["rows"])))


def take_averages(run, state: dict) -> None:
    """Give a run what a checkpoint keeps of --ema and --keep_best. Unfit, a ValueError, where it is not of this run."""
    begun = len(state["rows"]) > run.plan.first_epoch(run.stage)
    if run.average is not None and (begun or "average" in state):
        run.average.take(state.get("average"))
    if run.settings.training.keep_best and "best" in state:
        best = Best.from_plain(state["best"], run.model)
        # with more epochs, or another stage behind this one, masks may still change after it
        run.best = best if may_be_kept(run, best.epoch) else None


def what_to_repair(run, state: dict) -> dict:
    """Return what a checkpoint keeps for the layers that are cut later. Unfit where it is not of the run's network."""
    kept = state.get("to_repair", {})
    check(kept, Record(optional={"keep": DictOf(TENSOR), "original": ANYTHING}), "to_repair")
    if kept:
        check(kept, Record({"keep": ANYTHING, "original": ANYTHING}), "to_repair")
        check_values(ungated(run.model).state_dict(), kept["original"], "to_repair.original")
        for name, keep in kept["keep"].items():
            where = f"to_repair.keep.{name}"
            if name not in run.model.units or keep.shape != (run.model.units[name].filters,) or keep.dtype != torch.bool:
                raise Unfit(f"{where} is {told(keep)}, not what is kept of a unit's filters")
    return kept


def take_optimizer(optimizer: torch.optim.Optimizer, training, state, begun: bool, idle: Collection[int] = ()) -> None:
    """Give the optimiser the state of an earlier one of the same settings, whose stage has `begun` to train.

    Parameters of the numbers `idle` may not have learned yet, and so have no state. `training` is that section of the settings.
    Unfit, a ValueError, for options that the settings do not say, and for a state that such an optimiser does not leave.
    """
    own = optimizer.state_dict()["param_groups"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    groups = ListOf(Record({"params": ListOf(COUNT), "lr": number(0)}, dict.fromkeys(own[0], ANYTHING)))
    check(state, Record({"state": ANYTHING, "param_groups": groups}), "optimizer")
    check(len(state["param_groups"]), whole(len(own), len(own)), "the number of optimizer.param_groups")
    for mine, saved in zip(own, state["param_groups"], strict=True):
        for name in mine.keys() & saved.keys() - OF_THE_DEVICE | {"params"}:
            same = Is(str(mine[name])[:60], lambda it, mine=mine[name]: plain(it) and it == mine)
            check(saved[name], same, f"optimizer.param_groups.{name}")
    entries, wanted = state["state"], _left_by(training)
    if not isinstance(entries, dict) or not entries.keys() <= {*range(len(parameters))}:
        raise Unfit("optimizer.state is of other parameters")
    learned = [index for index, parameter in enumerate(parameters) if parameter.numel() and index not in idle]
    lacking = [index for index in learned if index not in entries]
    if wanted and lacking and (begun or entries):
        raise Unfit(f"optimizer.state has nothing for parameter {lacking[0]}")
    for index, entry in entries.items():
        _check_entry(entry, wanted, parameters[index], f"optimizer.state[{index}]")
    optimizer.load_state_dict({"state": entries, "param_groups": own})


def take_random(states, device: str) -> None:
    """Go on with the random states of the CPU and, where there are as many as here, of the GPUs. Unfit for anything else."""
    check(states, ListOf(TENSOR, 1), "random")
    try:
        torch.set_rng_state(states[0])
        if device == "cuda" and len(states) == 1 + torch.cuda.device_count():
            torch.cuda.set_rng_state_all(states[1:])
    except (RuntimeError, TypeError):
        raise Unfit("random is no state of a random generator") from None


def _left_by(training) -> dict[str, Tensor]:
    """Return what the optimiser of these settings keeps of a parameter, from a step on one number."""
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    optimizer = OPTIMISERS.get(training.optimizer)([{"params": [parameter]}], training, False)
    optimizer.step()
    return dict(optimizer.state[parameter])


def _check_entry(entry, wanted: dict[str, Tensor], parameter: Tensor, where: str) -> None:
    """Raise Unfit unless the entry holds what the optimiser keeps of this parameter."""
    check(entry, Record(dict.fromkeys(wanted, TENSOR)), where)
    for name, example in wanted.items():
        value, shape = entry[name], parameter.shape if example.dim() else ()
        if value.shape != shape or value.dtype != example.dtype or not value.isfinite().all():
            raise Unfit(f"{where}.{name} is {told(value)}, not of finite numbers and shape {tuple(shape)}")
        if name in ("step", "exp_avg_sq") and (value < 0).any():
            raise Unfit(f"{where}.{name} is negative")
