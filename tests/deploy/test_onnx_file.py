"""These tests put .onnx files to use: those of a form and of --export, and files that are damaged or of others."""

import json
from pathlib import Path

import onnx
import pytest
import torch
from conftest import TINY, TINY_DATA, TwoBlocks, run_program
from toys import NoiseTask

import models
from deploy.export import export
from deploy.forms.form import CodedForm
from deploy.forms.int8 import int8
from deploy.onnx_file import OnnxNetwork
from models import Card
from settings.errors import Failed, Refused
from tasks.images import as_bytes, normalised

CARD = Card("resnet20", ["blue", "green", "red", "white"], 8, [120.0, 110.0, 100.0], [60.0, 61.0, 62.0], fit="pad")
STRUCTURED = ["--prune_type", "structured", "--prune_rate", "0.6"]


@pytest.mark.core
def test_normalised_images_are_turned_back_into_their_bytes():
    pixels = torch.randint(0, 256, (9, 8, 8, 3), dtype=torch.uint8)
    mean, std = torch.tensor([125.3, 0.0, 255.0]), torch.tensor([63.0, 1.0, 0.7])
    assert torch.equal(as_bytes(normalised(pixels, mean, std), mean, std), pixels)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The content of a form's file."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("form") / "int8.onnx"
    int8(TwoBlocks().eval(), NoiseTask()).save(path, CARD)
    return path.read_bytes()


@pytest.mark.core
def test_a_file_says_what_it_is(whole, tmp_path):
    (tmp_path / "m.onnx").write_bytes(whole)
    network = OnnxNetwork(tmp_path / "m.onnx")
    assert network.card == CARD
    assert (network.weights, network.takes_bytes) == ("int8", True)
    assert network(torch.randn(5, 3, 8, 8)).shape == (5, 4)


def changed(whole: bytes, change) -> bytes:
    model = onnx.load_model_from_string(whole)
    change(model)
    return model.SerializeToString()


def with_fact(name: str, value):
    """A change of one of the facts that a file tells; None takes it away."""

    def change(model):
        facts = {entry.key: entry.value for entry in model.metadata_props} | {name: json.dumps(value)}
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, {name: text for name, text in facts.items() if text != "null"})

    return change


def flip(model):
    (weight,) = (one for one in model.graph.initializer if one.name.endswith("a1.gate.weights"))
    weight.raw_data = bytes([weight.raw_data[0] ^ 1]) + weight.raw_data[1:]


def without_facts(model):
    del model.metadata_props[:]


def elsewhere(model):
    weight = model.graph.initializer[0]
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="secret.bin")


@pytest.mark.core
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda whole: whole[:-200], "truncated or no ONNX file|is damaged|no ONNX file of this program"),
        (lambda whole: whole[: len(whole) // 2], "truncated or no ONNX file|is damaged|no ONNX file of this program"),
        (lambda whole: b"", "no ONNX file"),
        (lambda whole: b"no model at all", "truncated or no ONNX file"),
        (lambda whole: changed(whole, flip), "is damaged"),
        (lambda whole: changed(whole, without_facts), "no ONNX file of this program"),
        (lambda whole: changed(whole, elsewhere), "its weights are in other files"),
        (lambda whole: changed(whole, with_fact("classes", ["a", "b"])), "another number of classes than of outputs"),
        (lambda whole: changed(whole, with_fact("classes", None)), "no ONNX file of this program.*classes"),
        (lambda whole: changed(whole, with_fact("arch", "resnet21")), "unknown network"),
        (lambda whole: changed(whole, with_fact("image_size", 16)), r"does not take uint8 of shape \[16, 16, 3\]"),
        (lambda whole: changed(whole, with_fact("training", 3)), "training is 3"),
        (lambda whole: changed(whole, with_fact("input", {"type": "float32"})), "neither that it takes bytes"),
        (lambda whole: changed(whole, with_fact("input", {"type": "int8"})), "input.type is 'int8'"),
    ],
)
def test_what_is_no_file_of_this_program_is_refused(damage, message, whole, tmp_path):
    (tmp_path / "m.onnx").write_bytes(damage(whole))
    with pytest.raises(Refused, match=message) as caught:
        OnnxNetwork(tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)


def test_what_onnxruntime_cannot_compute_is_refused(whole, tmp_path):
    def unknown(model):
        model.graph.node[-1].op_type = "Gemmm"
        with_fact("digest", None)(model)

    (tmp_path / "m.onnx").write_bytes(changed(whole, unknown))
    with pytest.raises(Refused, match="cannot be computed by onnxruntime"):
        OnnxNetwork(tmp_path / "m.onnx")


@pytest.mark.parametrize("takes", ["bytes", "normalised"])
def test_an_exported_file_is_used_as_the_network_is(takes, tmp_path):
    network = models.build("resnet20", classes=3).eval()
    card = Card("resnet20", ["blue", "green", "red"], 16, [127.0] * 3, [60.0] * 3)
    pixels = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)
    inputs = normalised(pixels, torch.tensor(card.mean), torch.tensor(card.std))
    export(network, str(tmp_path / "m.onnx"), pixels if takes == "bytes" else inputs, card)
    again = OnnxNetwork(tmp_path / "m.onnx")
    assert again.card == card
    assert (again.weights, again.takes_bytes) == ("float32", takes == "bytes")
    with torch.no_grad():
        assert (again(inputs) - network(inputs)).abs().max() <= 1e-4 * network(inputs).abs().max()


@pytest.mark.measures
def test_an_ended_run_gets_its_form_and_the_file_is_used(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_program(*TINY, *STRUCTURED, "--epochs", "1", "--quiet", "--out_dir", "run")
    monkeypatch.setattr("deploy.measure.timed", lambda *_: [])
    capsys.readouterr()
    run_program("--resume", "run", "--quiet", "--compact", "--form", "int8(calibrate=2)")
    said, path = capsys.readouterr().out, Path("run/int8.onnx")
    result = json.loads(Path("run/summary.json").read_text())["form"]
    assert result["bytes"] == path.stat().st_size
    assert sum(result["bits"].values()) == 8 * result["bytes"]
    weights = sum(unit.weight.numel() for unit in models.load("run/model.pt").all_units.values())
    assert result["bits"]["weights"] >= 8 * weights  # and rows that spare an indexed addition
    assert result["images"] == 24
    assert 0 <= result["same"] <= 24
    assert f"; {result['same']} of 24 predictions the same" in said
    assert f"{result['float_bytes'] / result['bytes']:.1f} times smaller than its own .onnx file in float32" in said
    assert [(row["engine"], row["batch"]) for row in result["speed"]] == [("onnxruntime", 1), ("onnxruntime", 128)]
    for row in result["speed"]:
        assert f"batch {row['batch']}: {row['form']['ms']:.2f} ms, float32 {row['float32']['ms']:.2f} ms, " in said
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]
    run_program("--evaluate", str(path), "--quiet")
    assert f"result test accuracy: {result['after']:.2f}, " in (told := capsys.readouterr().out)
    assert "(24 images), int8 by onnxruntime" in told
    image = str(Path(TINY_DATA[3]) / "test" / "red" / "0.png")
    run_program("--predict", str(path), image)
    shares = [float(word.split(" ")[1]) for word in capsys.readouterr().out.split(": ")[1].split(", ")]
    assert sum(shares) == pytest.approx(1, abs=2e-4)
    run_program("--resume", "run", "--quiet")  # what has ended is told again
    assert capsys.readouterr().out.splitlines()[-8:] == said.splitlines()[-8:]


def test_a_run_takes_what_export_input_says_and_masks_on_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pruned = ["--prune_type", "unstructured", "--prune_rate", "0.8", "--export_input", "normalised"]
    run_program(*TINY, *pruned, "--epochs", "1", "--quiet", "--out_dir", "run", "--form", "int8(train=True, batches=2)")
    assert not OnnxNetwork("run/int8.onnx").takes_bytes
    model = onnx.load("run/int8.onnx")
    weights = [onnx.numpy_helper.to_array(one) for one in model.graph.initializer if one.name.endswith("conv1.gate.weights")]
    assert sum((one == 0).mean() for one in weights) / len(weights) > 0.2


def test_a_file_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    class Wrong(CodedForm):
        def read(self, path):
            network = super().read(path)
            network.classifier.layer.bias.data += 1
            return network

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("deploy.forms.deep_compression.CodedForm", Wrong)
    with pytest.raises(Failed, match="would not compute what it should"):
        run_program(*TINY, "--epochs", "1", "--quiet", "--out_dir", "run", "--form", "deep_compression(batches=0)")
    assert not Path("run/deep_compression.pt").exists()
