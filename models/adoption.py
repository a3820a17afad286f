"""This file adopts a module of PyTorch: it becomes a network here, with the same weights, that can be pruned like any other."""

import contextlib
import importlib.util
import inspect
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from models.assembling import Assembly
from models.program import Program
from models.tracing import traced
from settings.own_files import own_file

_CLOSE = {torch.float64: 1e-9}  # of the largest output; in float32 a hundred layers differ by some 1e-5


def adopt(module: nn.Module, example: Tensor) -> Program:
    """Return a network that computes what the module does, with a copy of its weights; the module is left as it was.

    `example` are images of the size that it is for, (images, channels, size, size); only their shape matters. The network is on
    the CPU, in evaluation mode, and all its weights are trained. ValueError, in one line, that names the first operation that no
    network here can have, and its place; or where the network would not compute the same.
    """
    weight = next(module.parameters(), None)
    if example.dim() != 4 or example.shape[2] != example.shape[3]:
        raise ValueError(f"an example is of images, (images, channels, size, size), not {tuple(example.shape)}")
    if weight is None:
        raise ValueError("it has no weights")
    if any(value.is_meta for value in module.state_dict().values()):
        raise ValueError("its weights are on the device 'meta', where they have no values")
    modes = {part: part.training for part in module.modules()}
    chance = torch.Generator().manual_seed(0)
    images = torch.randn(2, *example.shape[1:], generator=chance).to(weight)
    try:
        with torch.random.fork_rng(devices=[]):  # its forward may draw numbers
            operations, outputs = traced(module.eval(), images)
    finally:
        for part, training in modes.items():
            part.training = training
    made = Assembly(operations, example.shape[2], example.shape[1])
    with torch.device("meta"):
        network = Program(made.program)
    network = network.to(weight.dtype).to_empty(device="cpu").eval()
    rates = {f"{step['unit']}.dropout.rate": torch.tensor(step["dropout"]) for step in made.steps if step.get("dropout")}
    network.load_state_dict({name: value.detach() for name, value in made.tensors.items()} | rates)
    _check_same(network, images.cpu(), outputs.cpu())
    return network


@torch.no_grad()
def _check_same(network: Program, images: Tensor, outputs: Tensor) -> None:
    """Raise ValueError unless the network gives these outputs for these images, but for rounding."""
    if not outputs.isfinite().all():
        raise ValueError("its outputs are not finite numbers")
    difference = float((network(images) - outputs).abs().max() / outputs.abs().max().clamp_min(1e-30))
    if not difference <= _CLOSE.get(outputs.dtype, 1e-3):
        raise ValueError(f"what was traced of it does not compute the same: outputs differ by {difference:.1e} of the largest")


def from_file(text: str, *, classes: int = 10, channels: int = 3, size: int = 32) -> Program:
    """Return the network that `text`, such as "mynet.py:build", makes: a function, or a class, in a file of the user's.

    Its code is executed, with those of `classes`, `channels` and `size` that it declares. ValueError where it makes no module
    of so many outputs that can be adopted.
    """
    path, name = own_file(text)
    given = {"classes": classes, "channels": channels, "size": size}
    with torch.device("cpu"), contextlib.redirect_stdout(sys.stderr):  # stdout has a format of its own
        try:
            module = _called(_loaded(path, name), given)
        except (Exception, SystemExit) as error:
            raise ValueError(f"it raised {' '.join(f'{type(error).__name__}: {error}'.split())[:200]}") from None
        if not isinstance(module, nn.Module):
            raise ValueError(f"it returned a {type(module).__name__}, not a torch.nn.Module")
        network = adopt(module.float(), torch.zeros(1, channels, size, size))
    (outputs,) = (network.widths()[node] for node in network.outputs)
    if outputs != classes:
        raise ValueError(f"it has {outputs} outputs, and there are {classes} classes")
    return network


def _loaded(path: Path, name: str):
    """Execute a file of Python, which finds its neighbours, and return what it calls `name`."""
    spec = importlib.util.spec_from_file_location(f"_own_{path.stem}", path)
    module, folder = importlib.util.module_from_spec(spec), str(path.resolve().parent)
    sys.modules[spec.name], writes_no_bytecode = module, sys.dont_write_bytecode
    sys.path.insert(0, folder)
    try:
        sys.dont_write_bytecode = True  # a dry run writes no file
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = writes_no_bytecode
        if folder in sys.path:
            sys.path.remove(folder)
    return getattr(module, name)


def _called(function, given: dict):
    """Call the user's function with those of the values that it declares."""
    parameters = inspect.signature(function).parameters
    return function(**{name: value for name, value in given.items() if name in parameters})
