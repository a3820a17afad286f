"""This file puts the operations of a traced module together to the steps of a program (models/program.py), with its weights.

A layer, its batch norm, its ReLU and its dropout become one unit. A ReLU behind max-pooling moves in front of it, which gives
the same numbers; a bias in front of batch norm moves into the running mean, since batch norm takes it out again.
"""

from torch import Tensor

from models.network import Network
from models.operations import Operation, convolution, window
from models.program import is_tied

_LAYERS = ("convolution", "linear")


class Assembly:
    """An assembly makes `program`, plain values, and `tensors`, by their names in its network, of operations in their order.

    `size` are the pixels of a side of the images. ValueError where an operation has no place in a unit, a joint or a step.
    """

    def __init__(self, operations: list[Operation], size: int, channels: int):
        self.by_name = {operation.name: operation for operation in operations}
        self.steps: list[dict] = []
        self.tensors: dict[str, Tensor] = {}
        self.size = size
        # of each operation, or "input": which operation has made its numbers, the value that holds them, and their map
        self.root, self.value = {"input": "input"}, {"input": "input"}
        self.maps: dict[str, tuple[int, int, int]] = {"input": (channels, size, size)}
        self.makes: dict[str, dict] = {}  # the step that makes a value
        self.depth = {"input": 0}  # how many units there are in front of a value, at the most
        self.vectors: set[str] = set()  # the values that are no maps
        for operation in operations:
            if operation.kind == "view" or (operation.kind == "dropout" and operation.options["p"] == 0):
                self.root[operation.name] = self.root[operation.reads[0]]
            else:
                self.root[operation.name] = operation.name
        # the paths of layers and of what contains them
        layers = [path_in_network(operation.path).split(".") for operation in operations if operation.kind in _LAYERS]
        self.paths = {".".join(parts[:depth]) for parts in layers for depth in range(1, len(parts) + 1)}
        self.users: dict[str, list[Operation]] = {name: [] for name in self.root}
        for operation in operations:
            if self.root[operation.name] == operation.name:
                for name in operation.reads:
                    self.users[self.root[name]].append(operation)
        for operation in operations:
            if self.root[operation.name] == operation.name:
                getattr(self, f"_{operation.kind}")(operation)

    @property
    def program(self) -> dict:
        """The program, as `models.program.Program` takes it."""
        return {"size": self.size, "steps": self.steps, "gives": self.value["output"]}

    def _read(self, operation: Operation, place: int = 0) -> str:
        """Return the operation that has made the numbers that this one reads."""
        return self.root[operation.reads[place]]

    def _alone(self, name: str) -> bool:
        return len(self.users[name]) == 1

    def _check_maps(self, operation: Operation, place: int = 0) -> None:
        """Refuse what reads maps where they were reshaped, or vectors."""
        name = self._read(operation, place)
        if operation.given[place][1:] != self.maps[name] or self.value[name] in self.vectors:
            raise operation.refused(f"it reads {operation.given[place][1:]}, which are no maps as a layer has made them")

    def _fresh(self, wanted: str) -> str:
        """Return a name that no value, module or container has: the wanted one, with a number where it is taken."""
        taken = {"input", *self.makes, *self.paths}
        return next(name for name in (wanted, *(f"{wanted}{number}" for number in range(2, len(taken) + 3))) if name not in taken)

    def _add_step(self, operation: Operation, name: str, read: str, shape: tuple, **step) -> dict:
        """Append a step that reads a value, as the operation does, and makes a new one of this name."""
        step = {"do": step.pop("do"), "reads": read, "makes": name, **step}
        self.steps.append(step)
        self.makes[name], self.value[operation.name], self.maps[operation.name] = step, name, shape
        self.depth[name] = self.depth[read] + (step["do"] == "unit")
        return step

    def _unit(self, operation: Operation, layer: dict, shape: tuple, weight: Tensor) -> None:
        """Append the unit of a layer, which has dropout of its inputs where the layer alone reads what dropout gives."""
        name, rate = self._read(operation), 0.0
        if name != "input" and self.by_name[name].kind == "dropout" and self.value[name] is None:
            rate, name = float(self.by_name[name].options["p"]), self._read(self.by_name[name])
        read = self.value[name]
        if layer["kind"] == "linear" and read not in self.vectors:
            flat = next((step["makes"] for step in self.steps if step["do"] == "flatten" and step["reads"] == read), None)
            if flat is None:
                flat = self._fresh("flatten")
                self._add_step(operation, flat, read, shape, do="flatten")
                self.vectors.add(flat)
            read = flat
        path = path_in_network(operation.path)
        rest = {"norm": None, "activation": None, "dropout": rate, "drops_inputs": rate > 0, "joint": None}
        self._add_step(operation, path, read, shape, do="unit", unit=path, layer=layer, **rest)
        if layer["kind"] == "linear":
            self.vectors.add(path)
        self.tensors[f"{path}.layer.weight"] = weight
        if operation.module.bias is not None:
            self.tensors[f"{path}.layer.bias"] = operation.module.bias

    def _convolution(self, operation: Operation) -> None:
        self._check_maps(operation)
        self._unit(operation, convolution(operation), operation.shape[1:], operation.module.weight)

    def _linear(self, operation: Operation) -> None:
        layer, (channels, *sides) = operation.module, self.maps[self._read(operation)]
        if operation.given[0][1:] != (channels * sides[0] * sides[1],):
            raise operation.refused(f"it reads {operation.given[0][1:]} of each image, not one vector")
        of = {"inputs": channels, "filters": layer.out_features, "bias": layer.bias is not None}
        weight, shape = layer.weight, (layer.out_features, 1, 1)
        if sides == [1, 1]:
            return self._unit(operation, {"kind": "linear", **of}, shape, weight)
        if sides[0] != sides[1]:
            raise operation.refused(f"it reads maps of {sides[0]} x {sides[1]} pixels, not squares")
        weight = weight.view(len(weight), channels, *sides)
        self._unit(operation, {"kind": "whole_map", **of, "size": sides[0]}, shape, weight)

    def _norm(self, operation: Operation) -> None:
        norm, name = operation.module, self._read(operation)
        if name == "input" or self.by_name[name].kind not in _LAYERS or not self._alone(name):
            raise operation.refused("it is not behind a convolution or a linear layer that it alone reads")
        if not norm.affine or not norm.track_running_stats or (norm.momentum is not None and not 0 <= norm.momentum <= 1):
            raise operation.refused("it has no scale and shift, or no running mean and variance")
        value = self.value[name]
        step = self.makes[value]
        if (type(norm).__name__ == "BatchNorm1d") != (self.by_name[name].kind == "linear") or len(operation.given[0]) == 3:
            raise operation.refused("it is not of the kind of the layer before it")
        step["norm"] = {"eps": float(norm.eps), "momentum": norm.momentum}
        values, bias = dict(norm.state_dict()), self.tensors.pop(f"{step['unit']}.layer.bias", None)
        if bias is not None:
            step["layer"]["bias"], values["running_mean"] = False, values["running_mean"] - bias
        self.tensors |= {f"{step['unit']}.norm.{part}": tensor for part, tensor in values.items()}
        self._same(operation, name)

    def _same(self, operation: Operation, name: str) -> None:
        """Let an operation give the value that it reads: its step has become a part of what makes that."""
        self.value[operation.name], self.maps[operation.name] = self.value[name], self.maps[name]

    def _relu(self, operation: Operation) -> None:
        name = self._read(operation)
        behind = name
        passed = ("max_pool", "dropout") if operation.kind == "relu" else ("max_pool",)
        while behind != "input" and self._alone(behind) and self.by_name[behind].kind in passed:
            behind = self._read(self.by_name[behind])
        kind = None if behind == "input" or not self._alone(behind) else self.by_name[behind].kind
        step = self.makes.get(self.value[behind]) or {}
        if kind == "relu" and operation.kind == "relu":
            return self._same(operation, name)  # a second one changes nothing
        if kind in (*_LAYERS, "norm"):
            step["activation"] = operation.kind
        elif kind == "add" and operation.kind == "relu":
            step["joint"]["relu"] = True
        else:
            raise operation.refused(
                "it is not behind a layer that it alone reads" + (", or a sum" if operation.kind == "relu" else "")
            )
        self._same(operation, name)

    _relu6 = _relu

    def _dropout(self, operation: Operation) -> None:
        name, rate, users = self._read(operation), float(operation.options["p"]), self.users[operation.name]
        self._same(operation, name)
        if not 0 < rate < 1:
            raise operation.refused(f"its rate is {rate:g}")
        if len(users) == 1 and users[0].kind in _LAYERS:
            self.value[operation.name] = None  # that layer drops its inputs
            return
        step = self.makes.get(self.value[name], {"do": ""})
        if step["do"] != "unit" or step["joint"] or step["dropout"] or not self._alone(name):
            raise operation.refused("neither is it behind a layer that it alone reads, nor does one layer alone read it")
        step["dropout"] = rate

    def _max_pool(self, operation: Operation) -> None:
        self._check_maps(operation)
        read = self.value[self._read(operation)]
        self._add_step(operation, self._of_step(operation), read, operation.shape[1:], do=operation.kind, **window(operation))

    _average_pool = _max_pool

    def _of_step(self, operation: Operation) -> str:
        """Return a name for what a step makes that is no unit."""
        inside = f"{path_in_network(operation.path)}." if operation.path else ""
        return self._fresh(path_in_network(operation.path) if operation.module is not None else f"{inside}{operation.what}")

    def _adaptive_average(self, operation: Operation) -> None:
        self._check_maps(operation)
        sides = [*operation.shape[2:]]
        step = {"do": "mean"} if sides == [1, 1] else {"do": "adaptive_average", "size": sides}
        read = self.value[self._read(operation)]
        self._add_step(operation, self._of_step(operation), read, operation.shape[1:], **step)

    def _mean(self, operation: Operation) -> None:
        self._check_maps(operation)
        dims = operation.options["dim"]
        if not isinstance(dims, list | tuple) or {each % 4 for each in dims} != {2, 3} or operation.options["dtype"] is not None:
            raise operation.refused("a mean is of whole maps, over the dimensions 2 and 3")
        name = self._read(operation)
        self._add_step(operation, self._of_step(operation), self.value[name], (self.maps[name][0], 1, 1), do="mean")

    def _add(self, operation: Operation) -> None:
        names = [self._read(operation, place) for place in (0, 1)]
        for place in (0, 1):
            self._check_maps(operation, place)
        if operation.given[0] != operation.given[1]:
            raise operation.refused(f"it adds {operation.given[0]} and {operation.given[1]}")
        values = [self.value[name] for name in names]
        branches = [place for place in (0, 1) if self._alone(names[place]) and _may_be_added(self.makes.get(values[place]))]
        if not branches or values[0] == values[1]:
            raise operation.refused("one of both must be what a layer gives that nothing else reads, and no depthwise one")
        branch = max(branches, key=lambda place: (self.depth[values[place]], place))
        step, stream = self.makes.pop(values[branch]), values[1 - branch]
        self.steps.remove(step)
        inside = f"{path_in_network(operation.path)}." if operation.path else ""
        joint = self._fresh(f"{inside}joint")
        depth = max(self.depth[step["makes"]], self.depth[stream])
        step |= {"makes": joint, "joint": {"name": joint, "adds_to": stream, "relu": False}}
        self.steps.append(step)
        self.makes[joint], self.depth[joint] = step, depth
        self.value[operation.name], self.maps[operation.name] = joint, operation.shape[1:]

    def _output(self, operation: Operation) -> None:
        name = self._read(operation)
        value = self.value[name]
        if value is None or value == "input" or operation.given[0][1:] != self.maps[name][:1] or self.maps[name][1:] != (1, 1):
            raise ValueError(f"it gives {operation.given[0][1:]} for an image, not the logits of the classes as layers make them")
        if value not in self.vectors:
            self._add_step(operation, self._fresh("flatten"), value, self.maps[name], do="flatten")
        else:
            self.value["output"] = value


_PLAIN = Network()  # whose own attributes are no names for modules


def path_in_network(path: str) -> str:
    """Return the path that a module has in the network: its own, unless a network uses the first name otherwise."""
    first, dot, rest = path.partition(".")
    return (f"{first}_" if first == "input" or hasattr(_PLAIN, first) else first) + dot + rest


def _may_be_added(step: dict | None) -> bool:
    """Return whether a step may be the last unit of a branch, to which a joint adds the stream."""
    return bool(step) and step["do"] == "unit" and not step["joint"] and not is_tied(step["layer"])
