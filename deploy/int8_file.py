"""This file writes a network that rounds as an ONNX file in 8 bits, which onnxruntime computes on integers."""

import copy
import functools
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from deploy.export import complete, example_of, facts
from deploy.forms.form import Form
from deploy.forms.onnx import IR, OPSET, session, write_onnx
from deploy.onnx_file import OnnxNetwork
from deploy.quantised import Rounding, product, roundings
from models import Card, Network, Unit
from models.layers import Gate
from runs.storage import replace


@functools.cache
def sums_exactly() -> bool:
    """Return whether onnxruntime, on this processor, adds up products of 8 bits without saturating.

    x86 processors without VNNI add up two products in 16 bits: 255 x 127 twice is more than these hold.
    """
    from onnx import TensorProto, helper

    sides = [
        helper.make_tensor_value_info("a", TensorProto.UINT8, [16, 64]),
        helper.make_tensor_value_info("b", TensorProto.INT8, [64, 16]),
        helper.make_tensor_value_info("sums", TensorProto.INT32, [16, 16]),
    ]
    graph = helper.make_graph([helper.make_node("MatMulInteger", ["a", "b"], ["sums"])], "sums", sides[:2], sides[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    a, b = np.full((16, 64), 255, np.uint8), np.full((64, 16), 127, np.int8)
    (sums,) = session(model.SerializeToString()).run(None, {"a": a, "b": b})
    return bool((sums == 64 * 255 * 127).all())


@dataclass
class Int8Form(Form):
    """A form whose `network` rounds, in floats, as the file does on integers; `weight_bits` are those of each weight, 7 or 8."""

    weight_bits: int
    suffix = ".onnx"
    tolerance = 0.1
    cure = "; a processor without VNNI needs weight_bits=7"

    @property
    def about(self) -> str:
        chosen = "" if sums_exactly() else ", as this processor, without VNNI, does not add up products of 8 bits exactly"
        return f"weights of {self.weight_bits} bits{chosen if self.weight_bits == 7 else ''}"

    def bits(self) -> dict[str, dict[str, int]]:
        """Return the bits of weights, biases, scales and zero points."""
        bits = {}
        for name, unit in self.network.all_units.items():
            weight, bias = unit.layer.weight, unit.layer.bias
            if weight.numel():
                bits[f"{name}.layer.weight"] = {"weights": 8 * weight.numel(), "scales": 32 * unit.filters}
                if bias is not None:
                    bits[f"{name}.layer.bias"] = {"biases": 32 * bias.numel(), "scales": 32 * bias.numel()}
        return bits | {"activations": {"scales": 40 * len(roundings(self.network))}}

    def save(self, path: Path, card: Card, takes_bytes: bool = True) -> int:
        network = complete(in_file(self.network), card, takes_bytes)
        about = facts(card, takes_bytes) | {"training": json.dumps(card.training), "weights": json.dumps("int8")}
        with tempfile.TemporaryDirectory() as folder:
            draft = Path(folder) / "network.onnx"
            write_onnx(network, draft, example_of(card, takes_bytes), about)
            content = draft.read_bytes()
        replace(path, content)
        return len(content)

    def read(self, path: Path) -> OnnxNetwork:
        return OnnxNetwork(path)


class _Grid(nn.Module):
    """A tensor of activations as it is in the file: rounded to uint8, and read from that."""

    def __init__(self, rounding: Rounding):
        super().__init__()
        scale, zero = rounding.grid()
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero.to(torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        if 0 in x.shape[1:]:
            return x
        numbers = torch.onnx.ops.symbolic(
            "QuantizeLinear", (x, self.scale, self.zero), dtype=torch.uint8, shape=x.shape, version=18
        )
        return _read(numbers, self.scale, self.zero)


class _Integers(Gate):
    """A unit's weight and bias as they are in the file, int8 and int32, with the roundings around them."""

    def __init__(self, unit: Unit, inputs: _Grid | None, outputs: _Grid | None):
        super().__init__()
        gate, layer = unit.gate, unit.layer
        self.inputs, self.outputs, self.is_empty = inputs, outputs, layer.weight.numel() == 0
        if self.is_empty:
            return
        scales = gate.scales_of(unit)
        numbers = (layer.weight / scales.view(-1, *[1] * (layer.weight.dim() - 1))).round()
        self.register_buffer("weights", numbers.clamp(-gate.most, gate.most).to(torch.int8))
        self.register_buffer("weight_scales", scales)
        self.register_buffer("zeros", torch.zeros(unit.filters, dtype=torch.int8))
        self.has_bias = layer.bias is not None
        if self.has_bias:
            steps = gate.inputs.grid()[0] * scales
            self.register_buffer("biases", (layer.bias / steps).round().to(torch.int32))
            self.register_buffer("bias_scales", steps)
            self.register_buffer("bias_zeros", torch.zeros(unit.filters, dtype=torch.int32))

    def product(self, unit: Unit, x: Tensor) -> Tensor:
        x = x if self.inputs is None else self.inputs(x)
        if self.is_empty:
            return unit.multiply(x, unit.layer.weight)
        weight = _read(self.weights, self.weight_scales, self.zeros, axis=0)
        bias = _read(self.biases, self.bias_scales, self.bias_zeros, axis=0) if self.has_bias else None
        return product(unit, x, weight, bias)

    def forward(self, unit: Unit, x: Tensor) -> Tensor:
        return x if self.outputs is None else self.outputs(x)


def _read(numbers: Tensor, scale: Tensor, zero: Tensor, axis: int | None = None) -> Tensor:
    """Return the floats that integers stand for, by the operator of the file; along `axis` there is a scale for each part."""
    attributes = {} if axis is None else {"axis": axis}
    return torch.onnx.ops.symbolic(
        "DequantizeLinear", (numbers, scale, zero), attributes, dtype=torch.float32, shape=numbers.shape, version=18
    )


@torch.no_grad()
def in_file(network: Network) -> Network:
    """Return a copy, on the CPU, of a network that rounds, which is exported with integers in it. It computes nothing itself."""
    copied = copy.deepcopy(network).cpu()
    grids = {rounding: _Grid(rounding) for rounding in roundings(copied)}
    for unit in copied.all_units.values():
        inputs = grids[unit.gate.inputs] if unit.gate.reads_floats else None
        unit.gate = _Integers(unit, inputs, grids.get(unit.gate.outputs))
    for joint in copied.joints.values():
        joint.outputs = grids[joint.outputs]
    return copied.requires_grad_(False).eval()
