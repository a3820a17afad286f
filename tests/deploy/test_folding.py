"""These tests say that the folded copy gives the same outputs, whatever the wiring, and leaves the original alone."""

import pytest
import torch
from torch import nn
from toys import TOYS, images_for, outputs_of, toy

import models
from deploy import export, latency
from deploy.folding import InPlaceJoint, folded
from deploy.forms import onnx
from models import Joint, Network
from models.layers import conv_unit


class ReadLater(Network):
    """A stage that is copied into the next one, without parameters, and read again after it; and the images likewise."""

    outputs = ("late", "deep")

    def __init__(self):
        super().__init__()
        self.first, self.a = conv_unit(3, 3, 3, activation=False), Joint()
        self.second, self.b = conv_unit(3, 3, 3, activation=False), Joint()
        self.third = conv_unit(3, 3, 3, activation=False)
        self.late = conv_unit(3, 2, 1, activation=False)
        self.wire("first", "input", "first")  # gives the number of channels
        self.wire(None, "input", "stage1")
        self.wire("second", "first", "stage1", "a")
        self.wire(None, "stage1", "stage2")
        self.wire("third", "stage1", "stage2", "b")
        self.wire("late", "stage1", "late")
        self.wire(None, "stage2", "deep")

    def forward(self, x):
        y = self.a(self.second(self.first(x)), x)
        z = self.b(self.third(y), y)
        return self.late(y), z


def test_a_joint_overwrites_nothing_that_is_read_again():
    network, x = ReadLater().double().eval(), torch.randn(2, 3, 7, 7, dtype=torch.float64)
    form, before = folded(network), x.clone()
    with torch.no_grad():
        for copied in (form, folded(network, 4)):
            for got, wanted in zip(copied(x), network(before), strict=True):
                assert got.shape == wanted.shape
                assert (got - wanted).abs().max() <= 1e-12
            assert torch.equal(x, before)
    assert not isinstance(form.a, InPlaceJoint)
    assert not isinstance(form.b, InPlaceJoint)


@pytest.mark.parametrize("name", ["resnet20", "resnet20(shortcut='pad')", "resnet50"])
def test_the_published_networks_run_in_place(name):
    network = models.build(name).eval()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    form, x = folded(network), torch.randn(2, 3, 32, 32)
    assert all(isinstance(joint, InPlaceJoint) for joint in form.joints.values())
    assert all(unit.norm is None for unit in form.all_units.values())
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert not any(isinstance(joint, InPlaceJoint) for joint in network.joints.values())
    with torch.no_grad():
        assert (form(x) - network(x)).abs().max() <= 1e-4 * network(x).abs().max()


@pytest.mark.parametrize("name", TOYS)
def test_filling_up_gives_whole_blocks_of_channels(name):
    network = toy(name)
    form, x = folded(network, 4), images_for(network)
    fixed = {"input", *network.outputs}
    if name == "two outputs":  # the scale is tied to the first stage, and neither is an output
        assert form.widths()["scale"] == form.widths()["stage1"] == 8
    assert all(width % 4 == 0 for node, width in form.widths().items() if node not in fixed)
    for unit in form.all_units.values():
        if isinstance(unit.layer, nn.Conv2d) and unit.groups > 1:
            assert unit.groups == unit.filters
    with torch.no_grad():
        for got, wanted in zip(outputs_of(form(x)), outputs_of(network(x)), strict=True):
            assert (got - wanted).abs().max() <= 1e-12


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("name", ["depthwise, gray", "two outputs"])
def test_any_wiring_is_exported(name, suffix, tmp_path):
    network = toy(name).float()
    images = images_for(network, 4).float()
    exported = export.export(network, str(tmp_path / f"m{suffix}"), images)
    assert exported["difference"] <= 1e-5
    if suffix == ".onnx":
        names = [output.name for output in onnx.session(tmp_path / "m.onnx").get_outputs()]
        assert names == (["boxes", "scores"] if name == "two outputs" else ["logits"])


def test_a_wrong_second_output_is_seen(tmp_path, monkeypatch):
    network = toy("two outputs").float()
    run = export.run_onnx

    def wrong(*arguments):
        first, second = run(*arguments)
        return [first, second + 1]

    monkeypatch.setattr(export, "run_onnx", wrong)
    with pytest.raises(export.Failed, match="would not be the same network"):
        export.export(network, str(tmp_path / "m.onnx"), images_for(network).float())
    assert list(tmp_path.iterdir()) == []


def test_networks_of_one_channel_are_timed(monkeypatch):
    monkeypatch.setattr(latency, "MOST", 1)
    network = toy("depthwise, gray").float()
    took = latency.networks(network, network, 9, 2, "cpu")
    assert all(row["ms"] > 0 and row["peak_mb"] > 0 for row in took.values())
    assert len(onnx.onnxruntime_latency(network, network, 9, (1, 2))) == 2
