"""This file makes a network of a program: plain values that say which steps its forward pass takes, and so how it is wired.

A program is what remains of a module that was adopted (models/adoption.py). It stands in model.pt and in checkpoints, so that
such a network is rebuilt from values alone, and no code of its maker is executed.
"""

from torch import Tensor, nn

from models.joint import Joint
from models.layers import Unit, initialise
from models.network import Network
from models.parts import WholeMap
from models.steps import pooled
from settings.schema import TEXT, TRUTH, Is, ListOf, Maybe, Record, Unfit, check, number, shown, whole


def _pair(least: int) -> Is:
    """A schema of two whole numbers, of rows and of columns."""
    return Is(
        f"two whole numbers of at least {least}",
        lambda it: isinstance(it, list | tuple) and len(it) == 2 and all(type(n) is int and least <= n < 2**15 for n in it),
    )


def _one_of(names) -> Is:
    return Is(f"one of {', '.join(names)}", lambda it: type(it) is str and it in names)


_PATH = Is("a path of modules", lambda it: type(it) is str and all(part and part != "\0" for part in it.split(".")))
_SIDES, _GAPS = _pair(1), _pair(0)
_SIZE = whole(1, 2**31)
_LAYERS = {
    "convolution": {
        **{"inputs": _SIZE, "filters": _SIZE, "kernel": _SIDES, "stride": _SIDES, "padding": _GAPS, "dilation": _SIDES},
        **{"groups": _SIZE, "bias": TRUTH},
    },
    "whole_map": {"inputs": _SIZE, "filters": _SIZE, "size": whole(1, 2**15), "bias": TRUTH},
    "linear": {"inputs": _SIZE, "filters": _SIZE, "bias": TRUTH},
}
_JOINT = {"name": _PATH, "adds_to": TEXT, "relu": TRUTH}
_NORM = {"eps": number(0), "momentum": Maybe(number(0, 1))}
_UNIT = {
    "unit": _PATH,
    "layer": Record({"kind": _one_of(_LAYERS)}),
    "norm": Maybe(Record(_NORM)),
    "activation": Is("None, 'relu' or 'relu6'", lambda it: it in (None, "relu", "relu6")),
    "dropout": Is("a rate from 0 to below 1", lambda it: type(it) in (int, float) and 0 <= it < 1),
    "drops_inputs": TRUTH,
    "joint": Maybe(Record(_JOINT)),
}
_WINDOW = {"kernel": _SIDES, "stride": _SIDES, "padding": _GAPS, "ceil_mode": TRUTH}
# what a step of each kind holds, beside its kind ("do"), the value that it reads and the name of the one that it makes
STEPS = {
    "unit": _UNIT,
    "max_pool": _WINDOW | {"dilation": _SIDES},
    "average_pool": _WINDOW | {"count_include_pad": TRUTH, "divisor": Maybe(_SIZE)},
    "adaptive_average": {"size": _SIDES},
    "mean": {},
    "flatten": {},
}
PROGRAM = Record(
    {
        "size": whole(1, 2**15),
        "steps": ListOf(Record({"do": _one_of(STEPS), "reads": TEXT, "makes": TEXT}), 1),
        "gives": TEXT,
    }
)


class Program(Network):
    """A network whose forward pass runs the steps of a program, each of which reads a value and makes a new one.

    `program` has the pixels of a side of the images that it was made for ("size"), the "steps" in their order, and the value
    that it "gives". The first value is "input". A step is one of

    - `unit`: a unit, by its path in the network, with all that a `Unit` is made of. With a "joint" its output is added to the
      value "adds_to"
    - `max_pool`, `average_pool`, `adaptive_average`: torch's pooling of these names
    - `mean`: the mean of each map, as a map of one pixel
    - `flatten`: maps as vectors

    The wiring follows. Pooling and flattening leave the channels, and so the node, as they are. A sum stays in the node of the
    value that is added to, which so is a residual stream; where that value is read once more, by then, the sum has a node of
    its own, to which its channels are copied. Unfit, a ValueError, for values that are no program. Weights are fresh.
    """

    def __init__(self, program: dict):
        super().__init__()
        check_program(program)
        self.program, steps = program, program["steps"]
        # the number of the step that reads a value last, and the values that are let go behind each step
        self._last = {name: number for number, step in enumerate(steps) for name in _read(step)}
        self._last[program["gives"]] = len(steps)
        self._done = [[name for name, read in self._last.items() if read == number] for number in range(len(steps))]
        for step in steps:
            if step["do"] == "unit":
                self._put(step["unit"], _unit(step))
                if step["joint"]:
                    self._put(step["joint"]["name"], Joint(activation=step["joint"]["relu"]))
        self._wire_all()
        initialise(self)

    def _put(self, path: str, module: nn.Module) -> None:
        """Put a module at a path of the network, below containers. Unfit where something else is there."""
        *containers, name = path.split(".")
        parent: nn.Module = self
        try:
            for container in containers:
                if container not in dict(parent.named_children()):
                    parent.add_module(container, nn.Module())
                parent = parent.get_submodule(container)
            if (type(parent) is not nn.Module and parent is not self) or name in dict(parent.named_children()):
                raise KeyError
            parent.add_module(name, module)
        except KeyError:
            raise Unfit(f"program has two things that are called '{path}', or one that a network cannot have") from None

    def _wire_all(self) -> None:
        """Declare the wiring: of each value the node that holds its channels, and of each unit what it reads and writes."""
        nodes = {"input": "input"}
        for place, step in enumerate(self.program["steps"]):
            if step["do"] != "unit":
                nodes[step["makes"]] = nodes[step["reads"]]
                continue
            joint, path, target = step["joint"], None, step["makes"]
            if joint:
                path, stream = joint["name"], nodes[joint["adds_to"]]
                read_again = any(self._last.get(name, -1) > place for name, node in nodes.items() if node == stream)
                if stream == "input" or read_again:
                    self.wire(None, stream, target)
                else:
                    target = stream
            try:
                self.wire(step["unit"], nodes[step["reads"]], target, path, "channel" if is_tied(step["layer"]) else None)
            except ValueError as error:
                raise Unfit(f"program: {error}") from None
            nodes[step["makes"]] = target
        self.outputs = (nodes[self.program["gives"]],)

    def forward(self, x: Tensor) -> Tensor:
        """Run the steps on images, (images, channels, size, size), and return the logits, (images, classes)."""
        values = {"input": x}
        for step, done in zip(self.program["steps"], self._done, strict=True):
            read = values[step["reads"]]
            if step["do"] == "unit":
                made = self.get_submodule(step["unit"])(read)
                if step["joint"]:
                    made = self.get_submodule(step["joint"]["name"])(made, values[step["joint"]["adds_to"]])
            elif step["do"] == "flatten":
                made = read.flatten(1)
            elif step["do"] == "mean":
                made = read.mean((2, 3), keepdim=True)
            else:
                made = pooled(read, step)
            values[step["makes"]] = made
            for name in done:
                del values[name]
        return values[self.program["gives"]]

    def shapes(self) -> dict:
        """Return what `Network.shapes` does, with the program, so that whatever keeps these can rebuild the network."""
        return {**super().shapes(), "program": self.program}

    def reshape(self, shapes: dict) -> None:
        """Do what `Network.reshape` does. Unfit, a ValueError, for the shapes of another program."""
        if shapes.get("program", self.program) != self.program:
            raise Unfit("shapes.program is another network's")
        super().reshape(shapes)


def rebuild(name: str, shapes, *, classes: int | None = None, channels: int, size: int) -> Network:
    """Build the network of the program that stands in the `shapes` of a file; it is whole, and its weights are fresh.

    `name` is what the file calls it, such as mynet.py:build, which is not looked for. Unfit, a ValueError, where there is no
    program, or it is for other data.
    """
    program = shapes.get("program") if isinstance(shapes, dict) else None
    if program is None:
        raise Unfit(f"shapes has no program, of which alone {name} is rebuilt")
    network = Program(program)
    (outputs,) = (network.widths()[node] for node in network.outputs)
    here, wanted = [outputs, network.input_channels], [outputs if classes is None else classes, channels]
    if here != wanted:
        raise Unfit(f"its program is for {here[0]} classes and {here[1]} channels, not for {wanted[0]} and {wanted[1]}")
    whole_maps = any(step["do"] == "unit" and step["layer"]["kind"] == "whole_map" for step in program["steps"])
    if whole_maps and size != program["size"]:
        raise Unfit(f"its program is for images of {program['size']} pixels, not of {size}")
    return network


def is_tied(layer: dict) -> bool:
    """Return whether filter c of a layer reads channel c and no other: of one channel that is so in any case."""
    return layer["kind"] == "convolution" and 1 < layer["groups"] == layer["inputs"] == layer["filters"]


def _read(step: dict) -> list[str]:
    """Return the names of the values that a step reads."""
    return [step["reads"], *([step["joint"]["adds_to"]] if step.get("joint") else [])]


def _unit(step: dict) -> Unit:
    """Return the unit of a step, with fresh weights. Unfit where there can be none."""
    layer, norm = step["layer"], step["norm"]
    kind, inputs, filters, bias = layer["kind"], layer["inputs"], layer["filters"], layer["bias"]
    try:
        if kind == "linear":
            made = nn.Linear(inputs, filters, bias=bias)
        elif kind == "whole_map":
            made = WholeMap(inputs, filters, layer["size"])
            made.bias = made.bias if bias else None
        else:
            geometry = {name: tuple(layer[name]) for name in ("stride", "padding", "dilation")}
            made = nn.Conv2d(inputs, filters, tuple(layer["kernel"]), groups=layer["groups"], bias=bias, **geometry)
    except (ValueError, RuntimeError) as error:
        raise Unfit(f"program.{step['unit']}: {' '.join(str(error).split())[:100]}") from None
    activation = step["activation"] == "relu" or step["activation"] or False
    unit = Unit(made, norm is not None, activation, step["dropout"], step["drops_inputs"])
    if norm:
        unit.norm.eps, unit.norm.momentum = norm["eps"], norm["momentum"]
    return unit


def check_program(program) -> None:
    """Raise Unfit unless these values are a program: its steps are known, complete, and read what was made before them."""
    check(program, PROGRAM, "program")
    known = {"input"}
    for place, step in enumerate(program["steps"]):
        where = f"program.steps[{place}]"
        _check_whole(step, {"do": TEXT, "reads": TEXT, "makes": TEXT} | STEPS[step["do"]], where)
        if step["do"] == "unit":
            _check_whole(step["layer"], {"kind": TEXT} | _LAYERS[step["layer"]["kind"]], f"{where}.layer")
        for name in _read(step):
            if name not in known:
                raise Unfit(f"{where} reads {shown(name)}, which no step before it makes")
        if step["makes"] in known:
            raise Unfit(f"{where} makes {shown(step['makes'])}, which is there already")
        known.add(step["makes"])
    if program["gives"] not in known - {"input"}:
        raise Unfit(f"program gives {shown(program['gives'])}, which no step makes")


def _check_whole(value: dict, parts: dict, where: str) -> None:
    """Raise Unfit unless the table has these parts, as their schemas say, and no others."""
    check(value, Record(parts), where)
    if others := value.keys() - parts.keys():
        raise Unfit(f"{where} has {shown(min(others))}, which nothing here knows")
