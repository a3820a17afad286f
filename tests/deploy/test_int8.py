"""These tests are about the form in 8 bits: where it rounds, its ranges, its training, and the file beside its reference."""

import onnx
import onnxruntime
import pytest
import torch
from conftest import TwoBlocks, narrow
from onnx import numpy_helper
from toys import InGroups, NoiseTask, outputs_of, toy

import models
from deploy.folding import folded
from deploy.forms.int8 import int8
from deploy.forms.onnx import session, write_onnx
from deploy.int8_file import Int8Form, in_file, sums_exactly
from deploy.integers import accumulated, grid, quantise, real, requantised
from deploy.measure import plain
from deploy.quantised import BLOCK, Rounding, calibrate, quantised, roundings
from models import Card
from models.layers import conv_unit
from pruning import Pruner
from pruning.gates.scale import put_scales
from pruning.removal import Removal
from settings.errors import Failed

CARD = Card("resnet20", list("abcd"), 8, [120.0] * 3, [60.0] * 3)
MOST = 127 if sums_exactly() else 63  # the largest integer of a weight whose products this processor adds up exactly


def settled(network):
    """The network in evaluation mode, with batch norm's parameters and statistics away from their defaults."""
    for unit in network.all_units.values():
        if unit.norm is not None:
            torch.nn.init.uniform_(unit.norm.weight, 0.5, 1.5)
            torch.nn.init.uniform_(unit.norm.bias, -0.5, 0.5)
            torch.nn.init.uniform_(unit.norm.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(unit.norm.running_var, 0.5, 1.5)
    return network.float().eval()


def removed() -> models.Network:
    """What is left writes some channels of its streams, and leaves constants behind."""
    network = settled(narrow(models.build("resnet20", classes=4), 2))
    Pruner(network, rate=0.5, gate="weight").update(0.5)
    return Removal(network).compact()


class ByIndex(models.Network):
    """A branch that ends in groups, so that it cannot be filled up with rows of zeros."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner = conv_unit(3, 6, 3), conv_unit(6, 4, 3)
        self.last, self.joint = conv_unit(4, 4, 3, activation=False, groups=2), models.Joint()
        self.classifier = models.Unit(torch.nn.Linear(6, 4), norm=False, activation=False)
        self.wire("stem", "input", "stream")
        self.wire("inner", "stream", "inner")
        self.wire("last", "inner", "stream", "joint")
        self.wire("classifier", "stream", "output")
        self.joint.place(width=6, index=[0, 2, 3, 5])

    def forward(self, x):
        x = self.stem(x)
        return self.classifier(self.joint(self.last(self.inner(x)), x).mean((2, 3)))


def without_a_branch() -> models.Network:
    network = settled(TwoBlocks())
    put_scales(network, "block")
    next(unit.gate for unit in network.all_units.values() if unit.gate is not None).scale.data.zero_()
    return Removal(network).compact()


def masked() -> models.Network:
    """Masks on single weights, put into the weights."""
    network = settled(TwoBlocks())
    Pruner(network, rate=0.5, prune_type="unstructured").update(0.5)
    return plain(network)


NETWORKS = {
    "dense": lambda: settled(TwoBlocks()),
    "padded shortcuts": lambda: settled(narrow(models.build("resnet20(shortcut='pad')", classes=4))),
    "pooling and a hidden linear layer": lambda: settled(narrow(models.build("vgg16", classes=4), 16)),
    "linear layers that read maps": lambda: settled(models.build("lenet5", classes=4, channels=3, size=16)),
    "removed, with constants": removed,
    "a branch in groups that writes by index": lambda: settled(ByIndex()),
    "a branch is gone": without_a_branch,
    "masks on weights": masked,
    "in groups": lambda: settled(InGroups()),
    "depthwise": lambda: toy("depthwise").float(),
    "two outputs": lambda: toy("two outputs").float(),
}


def size_of(name: str) -> int:
    return {"pooling and a hidden linear layer": 32, "linear layers that read maps": 16}.get(name, 8)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_computes_what_the_network_does(name, tmp_path):
    network, size = NETWORKS[name](), size_of(name)
    images = torch.randn(12, 3, size, size)
    form = quantised(network, MOST)
    calibrate(form, [(images, None)])
    write_onnx(in_file(form), tmp_path / "m.onnx", torch.zeros(2, 3, size, size), {})
    with torch.no_grad():
        wanted, rounded = ([one] if isinstance(one, torch.Tensor) else one for one in (network(images), form(images)))
    got = [torch.from_numpy(one) for one in session(tmp_path / "m.onnx").run(None, {"images": images.numpy()})]
    for exact, emulated, in_the_file in zip(wanted, rounded, got, strict=True):
        largest = exact.abs().max()
        assert (emulated - exact).abs().max() < 0.12 * largest
        assert 0 < (in_the_file - exact).abs().max() < 0.12 * largest
        assert (in_the_file - emulated).abs().max() < 0.04 * largest


def exposed(path, images) -> tuple[onnx.ModelProto, dict]:
    """The model in a file, and all its integers: those inside of it, and those that onnxruntime computes for the images."""
    model = onnx.load(path)
    tensors = {value.name: torch.from_numpy(numpy_helper.to_array(value).copy()) for value in model.graph.initializer}
    names = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None) for name in names)
    outputs = [value.name for value in model.graph.output]
    computed = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"images": images.numpy()})
    return model, tensors | {name: torch.from_numpy(value) for name, value in zip(outputs, computed, strict=True)}


class Reference:
    """Each layer of a file, computed by the reference from the integers that the file gives it."""

    def __init__(self, path, images):
        self.model, self.tensors = exposed(path, images)
        self.maker = {node.output[0]: node for node in self.model.graph.node}
        self.readers = {name: node for node in self.model.graph.node for name in node.input}

    def integers(self, name: str):
        """The integers, the scale and the zero point of what a DequantizeLinear gives."""
        node = self.maker[name]
        assert node.op_type == "DequantizeLinear"
        return [self.tensors[one] for one in node.input]

    def layers(self):
        """For each layer that ends in integers: these, and what the reference gives."""
        for node in self.model.graph.node:
            if node.op_type == "Conv":
                (q1, s1, z1), (q2, s2, z2), (bias, s_bias, _) = (self.integers(name) for name in node.input)
                assert not z2.any()
                assert torch.allclose(s_bias, s1 * s2)
                geometry = {one.name: list(one.ints) for one in node.attribute if one.name in ("strides", "pads")}
                sums = accumulated(q1.long(), z1.long(), q2, bias, stride=geometry["strides"], padding=geometry["pads"][:2])
                last = node.output[0]
                while self.readers[last].op_type != "QuantizeLinear":
                    last = self.readers[last].output[0]
                (_, s3, z3), made = (self.tensors.get(name) for name in self.readers[last].input), self.readers[last].output[0]
                yield self.tensors[made].long(), requantised(sums, s1.double() * s2.double() / s3.double(), int(z3))

    def additions(self):
        for node in self.model.graph.node:
            if node.op_type == "Add":
                reals = [
                    real(numbers.long(), scale.double(), zero.long()) for numbers, scale, zero in map(self.integers, node.input)
                ]
                rounded = self.readers[self.readers[node.output[0]].output[0]]
                scale, zero = (self.tensors[name] for name in rounded.input[1:])
                yield self.tensors[rounded.output[0]].long(), quantise(sum(reals).relu(), float(scale), int(zero))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A network, and its file, which takes floats."""
    torch.manual_seed(0)
    network, path = settled(TwoBlocks()), tmp_path_factory.mktemp("form") / "int8.onnx"
    int8(network, NoiseTask()).save(path, CARD, takes_bytes=False)
    return network, path


@pytest.mark.core
@pytest.mark.parametrize("size", [1, 40], ids=["calibrated", "far outside of all ranges"])
def test_each_layer_of_the_file_agrees_with_the_reference_to_one_unit(saved, size):
    _, path = saved
    reference = Reference(path, size * torch.randn(6, 3, 8, 8))
    layers, additions = list(reference.layers()), list(reference.additions())
    assert (len(layers), len(additions)) == (5, 2)
    for got, wanted in (*layers, *additions):
        assert (got - wanted).abs().max() <= 1
        assert (got == wanted).float().mean() > 0.99
        assert len(got.unique()) > 10
    at_the_ends = ((layers[2][0] == 0) | (layers[2][0] == 255)).float().mean()
    assert at_the_ends > 0.05 if size > 1 else at_the_ends < 0.01


@pytest.mark.core
def test_the_runtime_computes_on_integers(saved, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 3
    onnxruntime.InferenceSession(str(saved[1]), options)
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert {kind: kinds.count(kind) for kind in ("QLinearConv", "QLinearAdd", "QGemm")} == {
        "QLinearConv": 5,
        "QLinearAdd": 2,
        "QGemm": 1,
    }
    assert not {"Conv", "Add", "Gemm"} & {*kinds}


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_filling_up_channels_changes_no_output(name, in_place):
    network = NETWORKS[name]()
    images = torch.randn(4, 3, *(2 * [32 if "pool" in name else 16]))
    with torch.no_grad():
        wanted = outputs_of(network(images))
        for block in (1, 4, 16):
            for output, exact in zip(outputs_of(folded(network, block, in_place)(images)), wanted, strict=True):
                assert torch.allclose(output, exact, atol=1e-5 * float(exact.abs().max())), block


@pytest.mark.core
def test_the_scales_are_those_of_onnxruntimes_own_tool(saved, tmp_path):
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = [{"images": inputs.numpy()} for inputs, _ in NoiseTask().sample(10)]

        def get_next(self):
            return self.left.pop() if self.left else None

    network, ours = saved[0], tmp_path / "ours.onnx"
    int8(network, NoiseTask(), weight_bits=8).save(ours, CARD, takes_bytes=False)
    write_onnx(folded(network, BLOCK), tmp_path / "float.onnx", torch.zeros(2, 3, 8, 8), {})
    quantize_static(
        *(str(tmp_path / name) for name in ("float.onnx", "theirs.onnx")),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )

    def of_convolutions(path):
        """For each convolution the scale and zero point of its input, the weight's integers and their scales."""
        model = onnx.load(path)
        values = {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}
        maker = {node.output[0]: node for node in model.graph.node}
        for node in model.graph.node:
            if node.op_type == "Conv":
                inputs, weight = (maker[name].input for name in node.input[:2])
                yield [torch.from_numpy(values[name].copy()) for name in (*inputs[1:], *weight[:2])]

    pairs = list(zip(*map(of_convolutions, (ours, tmp_path / "theirs.onnx")), strict=True))
    assert len(pairs) == 5
    for (scale, zero, weight, scales), (their_scale, their_zero, their_weight, their_scales) in pairs:
        assert torch.allclose(scale, their_scale, rtol=1e-4)
        assert int(zero) == int(their_zero)
        left = weight.flatten(1).any(1)  # filters of zeros that fill up the channels have any scale
        assert torch.allclose(scales[left], their_scales.flatten()[left], rtol=1e-4)
        assert (weight.int() - their_weight.int()).abs().max() <= 1


@pytest.mark.core
def test_each_filter_has_a_scale_of_its_own():
    network = settled(TwoBlocks())
    network.stem.layer.weight.data[0] *= 100
    form = int8(network, NoiseTask(), weight_bits=8)
    unit = form.network.stem
    scales = unit.gate.scales_of(unit)
    assert torch.allclose(scales, unit.layer.weight.flatten(1).abs().amax(1) / 127)
    weight, _ = unit.gate.values(unit)
    largest = unit.layer.weight.flatten(1).abs().amax(1)
    assert ((weight - unit.layer.weight).flatten(1).abs().amax(1) <= largest / 254 + 1e-6).all()
    assert torch.allclose(weight.flatten(1).abs().amax(1), largest)  # never -128


@pytest.mark.core
def test_a_large_bias_beside_small_weights_fits_into_32_bits(tmp_path):
    network = settled(TwoBlocks())
    network.stem.norm = None
    network.stem.layer.bias = torch.nn.Parameter(torch.linspace(0.5, 3, 6))
    network.stem.layer.weight.data[:3] *= 1e-9
    network.stem.layer.weight.data[0] = 0
    form = int8(network, NoiseTask())
    form.save(tmp_path / "m.onnx", CARD, takes_bytes=False)
    images = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        wanted = network(images)
    got = torch.from_numpy(session(tmp_path / "m.onnx").run(None, {"images": images.numpy()})[0])
    assert (got - wanted).abs().max() < (0.05 if sums_exactly() else 0.1) * wanted.abs().max()


@pytest.mark.core
def test_ranges_hold_all_that_was_seen_and_zero_whatever_the_order():
    network, batches = settled(TwoBlocks()), list(NoiseTask().sample(4))
    forms = []
    for order in (batches, batches[::-1]):
        forms.append(quantised(network))
        calibrate(forms[-1], order)
    for one, other in zip(*map(roundings, forms), strict=True):
        assert torch.equal(one.low, other.low)
        assert torch.equal(one.high, other.high)
        assert one.low <= 0 <= one.high
        scale, zero = one.grid()
        assert (float(scale), int(zero)) == (
            pytest.approx(grid(float(one.low), float(one.high))[0]),
            grid(float(one.low), float(one.high))[1],
        )
        assert torch.fake_quantize_per_tensor_affine(torch.zeros(1), scale, zero, 0, 255).item() == 0
    images = torch.cat([inputs for inputs, _ in batches])
    first = forms[0].stem.gate.inputs
    assert (float(first.low), float(first.high)) == (float(images.min()), float(images.max()))


@pytest.mark.core
def test_a_tensor_of_zeros_has_a_range():
    rounding = Rounding()
    rounding(torch.zeros(3, 2))
    rounding.watches, rounding.rounds = "", True
    assert rounding(torch.zeros(3, 2)).tolist() == [[0, 0]] * 3


@pytest.mark.core
def test_ranges_follow_as_moving_averages():
    rounding = Rounding()
    rounding(torch.tensor([[-1.0, 3.0]]))
    rounding.watches = "average"
    rounding(torch.tensor([[1.0, 5.0]]))
    assert float(rounding.low) == pytest.approx(-0.99)
    assert float(rounding.high) == pytest.approx(0.99 * 3 + 0.01 * 5)


@pytest.mark.core
def test_gradients_pass_straight_through_within_the_range():
    rounding = Rounding()
    rounding(torch.tensor([[-1.0, 3.0]]))
    rounding.watches, rounding.rounds = "", True
    x = torch.tensor([[-2.0, -0.5, 0.013, 2.9, 4.0]], requires_grad=True)
    rounding(x).sum().backward()
    assert x.grad.tolist() == [[0, 1, 1, 1, 0]]


def loss_of(form: Int8Form) -> float:
    task = NoiseTask()
    with torch.no_grad():
        return sum(float(task.losses(form.network(inputs), targets)["cross_entropy"]) for inputs, targets in task.sample(4))


@pytest.mark.core
def test_training_lowers_the_loss_of_what_is_rounded_and_is_decided_by_the_seed():
    torch.manual_seed(3)
    network = settled(TwoBlocks())
    before, *trained = (
        int8(network, NoiseTask(), calibrate=2, train=train, batches=60, lr=0.01) for train in (False, True, True)
    )
    assert loss_of(trained[0]) < 0.9 * loss_of(before)
    states = [form.network.state_dict() for form in trained]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(
        not torch.equal(one.high, other.high)
        for one, other in zip(*(roundings(form.network) for form in (before, trained[0])), strict=True)
    )
    assert all(value.requires_grad is False for value in trained[0].network.parameters())


@pytest.mark.core
def test_activations_are_rounded_behind_the_delay(monkeypatch):
    from deploy import quantised as module

    told, set_mode = [], module.set_mode
    monkeypatch.setattr(
        module,
        "set_mode",
        lambda network, *mode, **rest: (told.append(rest.get("rounds", True)), set_mode(network, *mode, **rest)),
    )
    int8(settled(TwoBlocks()), NoiseTask(), calibrate=1, train=True, batches=8, delay=0.25)
    assert told == [False, True, *[False] * 2, *[True] * 6, True]


@pytest.mark.core
def test_training_that_diverges_is_no_form():
    with pytest.raises(Failed, match="trained at lr=1e\\+20 the network is not finite: choose a smaller one"):
        int8(settled(TwoBlocks()), NoiseTask(), train=True, batches=8, lr=1e20)


@pytest.mark.core
def test_weights_of_seven_bits_are_no_larger_than_63():
    form = int8(settled(TwoBlocks()), NoiseTask(), weight_bits=7)
    integers = in_file(form.network).stem.gate.weights
    assert int(integers.abs().max()) == 63


@pytest.mark.core
@pytest.mark.parametrize(("exact", "most"), [(True, 127), (False, 63)])
def test_by_default_weights_have_as_many_bits_as_the_processor_adds_up_exactly(exact, most, monkeypatch):
    monkeypatch.setattr("deploy.forms.int8.sums_exactly", lambda: exact)
    form = int8(settled(TwoBlocks()), NoiseTask())
    assert int(in_file(form.network).stem.gate.weights.abs().max()) == most
    assert f"weights of {8 if exact else 7} bits" in form.about
