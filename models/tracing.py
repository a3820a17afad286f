"""This file traces a module of PyTorch: what it does with its input, as a list of operations that our networks know.

torch.fx follows the module's own forward, and so names things as their maker did, and keeps dropout and batch norm as they are
in training. torch.export would give the operations of one mode, in which these are gone, or without names.
"""

import inspect
import traceback
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from models.operations import ARGUMENTS, FUNCTIONS, HINTS, MODULES, SIZES, Operation


class _Tracer(fx.Tracer):
    """A tracer that does not look into modules that are known as a whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _kind(m) is not None or super().is_leaf_module(m, module_qualified_name)


class _Recorder(fx.Interpreter):
    """It runs a module, and keeps of each node the shape of a tensor ("shapes") or the value of anything else ("values")."""

    def __init__(self, module: nn.Module, graph: fx.Graph):
        super().__init__(module, graph=graph)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.values: dict[fx.Node, object] = {}

    def run_node(self, n: fx.Node):
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = tuple(result.shape)
        else:
            self.values[n] = result
        return result


def _kind(module: nn.Module) -> str | None:
    """Return what kind of operation a module is; None for one that computes otherwise than torch's of its class."""
    known = next((known for known in MODULES if isinstance(module, known)), None)
    same = known is not None and all(
        getattr(type(module), name, 0) is getattr(known, name, 0) for name in ("forward", "_conv_forward")
    )
    return MODULES[known] if same and not is_parametrized(module) else None


def traced(module: nn.Module, images: Tensor) -> tuple[list[Operation], Tensor]:
    """Return a module's operations in their order, the last of which is "output", and what it gives for these images.

    The module is in evaluation mode. ValueError for what cannot be traced, and for what is none of the known operations.
    """
    graph = _graph(module)
    first, *others = graph.find_nodes(op="placeholder")
    recorder = _Recorder(module, graph)
    try:
        with torch.no_grad():
            outputs = recorder.run(images, *[node.args[0] for node in others])
    except Exception as error:
        raise ValueError(f"its forward fails on images of shape {tuple(images.shape[1:])}: {_line(error)}") from None
    moving, operations, owner, needed = {first: "input"}, [], type(module).__name__, _needed(graph)
    for node in graph.nodes:
        if node not in needed:
            continue
        if node.op.startswith("call") and any(each in moving for each in node.all_input_nodes):
            operation = _operation(module, owner, node, recorder, moving)
            if operation is not None:
                operations.append(operation)
                moving[node] = node.name
        elif node.op == "output":
            operations.append(_output(node, recorder, moving))
    _check_unshared(operations)
    _check_same_in_training(module, graph)
    return operations, outputs


def _graph(module: nn.Module) -> fx.Graph:
    """Trace the module; further inputs of its forward have their defaults."""
    parameters = [*inspect.signature(module.forward).parameters.values()]
    others = {each.name: each.default for each in parameters[1:] if each.default is not each.empty}
    if not parameters or any(each.default is each.empty and each.kind is not each.VAR_KEYWORD for each in parameters[1:]):
        raise ValueError("its forward takes other inputs than images alone")
    try:
        graph = _Tracer().trace(module, concrete_args=others or None)
    except Exception as error:
        if "control flow" in str(error):
            raise ValueError(f"its forward branches on what it reads, {_origin(error)}, which cannot be traced") from None
        raise ValueError(f"its forward cannot be traced, {_origin(error)}: {_line(error)}") from None
    return graph


def _check_same_in_training(module: nn.Module, graph: fx.Graph) -> None:
    """Raise ValueError where a forward takes other operations in training; its graph in evaluation alone would lose them."""
    other = _graph(module.train())
    module.eval()
    if [(node.op, node.target) for node in graph.nodes] != [(node.op, node.target) for node in other.nodes]:
        raise ValueError("its forward takes other operations in training than in evaluation, which no network here does")


def _needed(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that the output depends on: what else is computed is no part of the network."""
    waiting, needed = [*graph.find_nodes(op="output")], set()
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    return needed


def _origin(error: Exception) -> str:
    """Return the line of the module's own code at which tracing ended."""
    torch_s, this = str(Path(torch.__file__).parent), __file__
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(torch_s) and frame.filename != this] or frames
    return f"in line {own[-1].lineno} of {Path(own[-1].filename).name}"


def _line(error: Exception) -> str:
    text = str(error).partition("While executing")[0]  # of the traced code
    return " ".join(f"{type(error).__name__}: {text}".split())[:150]


def _operation(module: nn.Module, owner: str, node: fx.Node, recorder: _Recorder, moving: dict) -> Operation | None:
    """Return the operation that a node is, of which something depends on the input; None where it only asks for sizes."""
    stack = [(path, kind) for path, kind in node.meta.get("nn_module_stack", {}).values() if path]
    part = module.get_submodule(node.target) if node.op == "call_module" else None
    named = getattr(node.target, "__name__", str(node.target)).strip("_")
    path = node.target if part is not None else stack[-1][0] if stack else ""
    inside = f"'{path}' ({stack[-1][1].__name__})" if path else owner
    what, place = (type(part).__name__, f"at '{path}'") if part is not None else (named, f"in the forward of {inside}")
    if node not in recorder.shapes and (named in SIZES or (named == "getattr" and node.args[1] in SIZES)):
        return None
    inputs = [each for each in node.all_input_nodes if each in moving]
    reads, given = [moving[each] for each in inputs], [recorder.shapes[each] for each in inputs]
    operation = Operation(node.name, "", what, place, path, reads, given, recorder.shapes.get(node, ()), module=part)
    kind = FUNCTIONS.get(node.target) if part is None else _kind(part)
    if kind is None or node not in recorder.shapes:
        raise operation.refused(HINTS.get(what, ""))
    if part is not None and (part._forward_hooks or part._forward_pre_hooks):
        raise operation.refused("it has hooks, which may change what it gives")
    operation.kind = kind
    operation.options = _options(operation, node, recorder)
    if kind == "view" and (operation.shape[0], _numbers(operation.shape)) != (
        operation.given[0][0],
        _numbers(operation.given[0]),
    ):
        raise operation.refused(f"it makes {operation.shape} of {operation.given[0]}")
    return operation


def _numbers(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _options(operation: Operation, node: fx.Node, recorder: _Recorder) -> dict:
    """Return what an operation is called with, by name. ValueError for what nothing here stands for."""
    names, part = ARGUMENTS.get(operation.kind, {}), operation.module
    if part is not None:
        chosen = {name: getattr(part, name, default) for name, default in names.items()}
        return chosen | ({"training": False} if operation.kind == "dropout" else {})
    others = dict(zip(names, node.args[1:], strict=False)) | {key: value for key, value in node.kwargs.items() if key in names}
    chosen = names | fx.node.map_arg(others, lambda each: recorder.values.get(each, each))
    if operation.kind == "add" and (len(operation.reads) != 2 or chosen["alpha"] != 1):
        raise operation.refused("only two maps that depend on the images are added, each once")
    if operation.kind == "dropout" and chosen["training"]:
        raise operation.refused("it drops numbers in evaluation too: give it training=self.training")
    return chosen


def _output(node: fx.Node, recorder: _Recorder, moving: dict) -> Operation:
    """Return the last operation. ValueError unless the module gives one tensor that depends on its input."""
    (given,) = node.args
    if not isinstance(given, fx.Node) or given not in recorder.shapes:
        raise ValueError(f"it gives a {type(recorder.values.get(node)).__name__}, not one tensor")
    if given not in moving:
        raise ValueError("what it gives does not depend on the images")
    shape = recorder.shapes[given]
    return Operation("output", "output", "the output", "", "", [moving[given]], [shape], shape)


def _check_unshared(operations: list[Operation]) -> None:
    """Raise ValueError where a module or a weight is used twice, which pruning could not cut once."""
    used: dict[int, str] = {}
    for operation in operations:
        if operation.module is None:
            continue
        for value in operation.module.parameters():
            if id(value) in used:
                raise operation.refused(f"it shares weights with, or is used once more as, '{used[id(value)]}'")
        used |= {id(value): operation.path for value in operation.module.parameters()}
