"""This file says which operations of a module of PyTorch a network here can have, and in which plain values a step holds them."""

import operator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

MODULES = {
    nn.Conv2d: "convolution",
    nn.Linear: "linear",
    nn.BatchNorm2d: "norm",
    nn.BatchNorm1d: "norm",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.MaxPool2d: "max_pool",
    nn.AvgPool2d: "average_pool",
    nn.AdaptiveAvgPool2d: "adaptive_average",
    nn.Dropout: "dropout",
    nn.Flatten: "view",
    nn.Identity: "view",
}
_VIEWS = (torch.flatten, torch.squeeze, torch.reshape, "flatten", "view", "reshape", "squeeze", "contiguous")
FUNCTIONS = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), "relu"),
    F.relu6: "relu6",
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), "add"),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), "max_pool"),
    F.avg_pool2d: "average_pool",
    F.adaptive_avg_pool2d: "adaptive_average",
    **dict.fromkeys((torch.mean, "mean"), "mean"),
    F.dropout: "dropout",
    **dict.fromkeys(_VIEWS, "view"),
}
_WINDOW = {"kernel_size": None, "stride": None, "padding": 0}
# what an operation is called with behind its input, in this order, with its defaults; a module has attributes of these names
ARGUMENTS = {
    "max_pool": _WINDOW | {"dilation": 1, "ceil_mode": False, "return_indices": False},
    "average_pool": _WINDOW | {"ceil_mode": False, "count_include_pad": True, "divisor_override": None},
    "mean": {"dim": None, "keepdim": False, "dtype": None},
    "dropout": {"p": 0.5, "training": True, "inplace": False},
    "add": {"other": None, "alpha": 1},
}
# what may be asked of a tensor without reading its numbers
SIZES = ("size", "dim", "shape", "ndim", "ndimension")
HINTS = {
    "cat": "concatenation is no step of a network here",
    **dict.fromkeys(("log_softmax", "softmax", "LogSoftmax", "Softmax"), "end with the logits, of which the loss is computed"),
    **dict.fromkeys(("Dropout2d", "dropout2d"), "dropout is of single numbers here: nn.Dropout"),
    **dict.fromkeys(("conv2d", "linear", "batch_norm"), "use the module, such as nn.Conv2d, which keeps its weights"),
    **dict.fromkeys(
        (
            "GELU",
            "gelu",
            "SiLU",
            "silu",
            "Hardswish",
            "hardswish",
            "LeakyReLU",
            "leaky_relu",
            "ELU",
            "PReLU",
            "Sigmoid",
            "sigmoid",
        ),
        "the activations are ReLU and ReLU6",
    ),
}


@dataclass
class Operation:
    """An operation of a traced module: its kind, the operations that it reads, and what it is called with.

    `what` and `place` say in words what it is and where it stands; `path` is that of its module, or of the module in whose
    forward it is. `reads` are names of operations, of which "input" is the first. `given` are the shapes that are read, `shape`
    is that which is made, with the images first. A "view" leaves the numbers and their order as they are.
    """

    name: str
    kind: str
    what: str
    place: str
    path: str
    reads: list[str]
    given: list[tuple[int, ...]]
    shape: tuple[int, ...]
    options: dict = field(default_factory=dict)
    module: nn.Module | None = None

    def refused(self, why: str = "") -> ValueError:
        """Return the error that says that this operation cannot be adopted, and why."""
        return ValueError(f"{self.what} {self.place} cannot be adopted" + (f": {why}" if why else ""))


def convolution(operation: Operation) -> dict:
    """Return what a step says of a convolution. ValueError for one that is not padded with a number of zeros on both sides."""
    layer = operation.module
    if layer.padding_mode != "zeros":
        raise operation.refused(f"it is padded by {layer.padding_mode}, not with zeros")
    geometry = {"kernel": [*layer.kernel_size], "stride": [*layer.stride], "dilation": [*layer.dilation]}
    padding = layer.padding
    if padding == "same":
        both = [dilation * (side - 1) for dilation, side in zip(layer.dilation, layer.kernel_size, strict=True)]
        if any(each % 2 for each in both):
            raise operation.refused("of its padding one side has more than the other")
        padding = [each // 2 for each in both]
    geometry["padding"] = [0, 0] if padding == "valid" else [*padding]
    of = {"inputs": layer.in_channels, "filters": layer.out_channels, "groups": layer.groups, "bias": layer.bias is not None}
    return {"kind": "convolution", **of, **geometry}


def window(operation: Operation) -> dict:
    """Return what a step says of pooling over windows."""
    options = operation.options
    kernel, padding = _pair(options["kernel_size"]), _pair(options["padding"])
    stride = _pair(options["stride"] or options["kernel_size"])
    values = {"kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": bool(options["ceil_mode"])}
    if operation.kind == "max_pool":
        if options["return_indices"]:
            raise operation.refused("it returns indices")
        return values | {"dilation": _pair(options["dilation"])}
    return values | {"count_include_pad": bool(options["count_include_pad"]), "divisor": options["divisor_override"]}


def _pair(value: int | tuple | list) -> list[int]:
    """Return a size as two numbers, of rows and of columns."""
    return [value, value] if isinstance(value, int) else [*value] if len(value) == 2 else [*value] * 2
