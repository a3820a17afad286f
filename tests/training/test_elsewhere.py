"""These tests begin runs with weights from elsewhere, by the command line: what is said, kept, refused, and gone on with."""

import json
import urllib.error
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import TINY_DATA, run_program
from promises import trains_and_resumes
from torch import nn

import models
import tasks
from models.foreign import fitted, state_of
from settings.arguments import parse
from settings.errors import Refused
from tasks.images import NORMALISATIONS, normalisation
from training.elsewhere import from_elsewhere

CUT = ["--prune_type", "structured", "--prune_rate", "0.5"]
PAD = ["--arch", "resnet20(shortcut='pad')"]
LARGE = ["--arch", "mobilenetv2(stem='imagenet')", *TINY_DATA, "--image_size", "32", "--epochs", "1", "--batch_size", "27"]


def akamaster(classes: int) -> dict[str, torch.Tensor]:
    """The state dict of akamaster's ResNet-20, by its published names and shapes, with random values."""
    shapes: dict[str, tuple] = {}

    def layer(conv: str, norm: str, filters: int, inputs: int) -> None:
        shapes[f"{conv}.weight"] = (filters, inputs, 3, 3)
        shapes.update({f"{norm}.{part}": (filters,) for part in ("weight", "bias", "running_mean", "running_var")})

    layer("conv1", "bn1", 16, 3)
    inputs = 16
    for stage, filters in enumerate((16, 32, 64), start=1):
        for block in range(3):
            layer(f"layer{stage}.{block}.conv1", f"layer{stage}.{block}.bn1", filters, inputs)
            layer(f"layer{stage}.{block}.conv2", f"layer{stage}.{block}.bn2", filters, filters)
            inputs = filters
    shapes |= {"linear.weight": (classes, 64), "linear.bias": (classes,)}
    state = {}
    for name, shape in shapes.items():
        value = torch.rand(shape) + 0.5 if len(shape) == 1 else torch.randn(shape) * (2 / torch.Size(shape[1:]).numel()) ** 0.5
        state[f"module.{name}"] = value
    return state


@pytest.fixture
def said(monkeypatch, tmp_path, capsys):
    """Run the program in an empty folder, and return what it said on stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*flags: str) -> str:
        capsys.readouterr()
        run_program(*flags)
        return capsys.readouterr().err

    return run


def test_a_file_in_the_old_format_is_pruned_and_says_what_it_was_before(said):
    state = akamaster(3)
    torch.save({"state_dict": state, "best_prec1": 91.2}, "old.th", _use_new_zipfile_serialization=False)
    tiny = [*TINY_DATA, "--epochs", "2", "--batch_size", "27", "--lr", "1e-30", "--weight_decay", "0", "--out_dir", "run"]
    lines = said(*tiny, *PAD, "--init", "old.th", *CUT, "--compact").splitlines()
    assert "weights from elsewhere, 'old.th': 97 tensors; its classifier of 3 classes is kept" in lines
    assert any(line.startswith("images are normalised by the mean and deviation of these data; --normalise") for line in lines)
    before = next(line for line in lines if line.startswith("before pruning: "))
    assert before.endswith(" % held out")
    saved = torch.load("run/checkpoint.pt", weights_only=True)
    assert saved["settings"]["init"] == "old.th"
    assert "model.pt" in {path.name for path in Path("run").iterdir()}
    # nothing was learned, and the first cut masks filters alone: what is not cut is what the file holds
    said(*tiny[:-2], *PAD, "--init", "old.th", "--out_dir", "dense")
    dense = torch.load("dense/checkpoint.pt", weights_only=True)["model"]
    torch.testing.assert_close(dense["stem.layer.weight"], state["module.conv1.weight"])
    torch.testing.assert_close(dense["stage1.2.conv2.layer.weight"], state["module.layer1.2.conv2.weight"])
    zeros_behind = [*range(8, 24), *range(8), *range(24, 32)]
    torch.testing.assert_close(dense["stage2.1.conv2.layer.weight"], state["module.layer2.1.conv2.weight"][zeros_behind])
    evaluated = said(*tiny[:-2], *PAD, "--init", "old.th", "--dry_run")
    assert "before training: " in evaluated


def test_the_measure_before_pruning_is_that_of_the_network(said):
    torch.save(akamaster(3), "bare.pth")
    flags = [*TINY_DATA, *PAD, "--init", "bare.pth", "--epochs", "1", "--batch_size", "27", "--val_size", "0"]
    line = next(line for line in said(*flags, *CUT).splitlines() if line.startswith("before pruning: "))
    network = models.build("resnet20(shortcut='pad')", classes=3)
    network.take(fitted(network, state_of(torch.load("bare.pth", weights_only=True)))[0])
    task = tasks.load(parse(flags).data, batch_size=27, seed=0, device="cpu")
    inputs, targets = next(iter(task.ordered(task.test, 100)))
    right = (network.eval()(inputs).argmax(1) == targets).float().mean().item()
    assert line == f"before pruning: {100 * right:.2f} % on the test set"


def test_a_new_classifier_is_told_and_nothing_is_measured(said):
    torch.save({"net": akamaster(10)}, "ten.pth")
    lines = said(*TINY_DATA, *PAD, "--init", "ten.pth", "--normalise", "imagenet", "--dry_run").splitlines()
    kept = "the classifier is new, for 3 classes instead of 10, so that nothing is measured before training"
    assert f"weights from elsewhere, 'ten.pth': 97 tensors; {kept}" in lines
    assert "images are normalised by the mean and deviation of ImageNet" in lines
    assert not [line for line in lines if line.startswith("before ")]
    with pytest.raises(
        Refused, match=r"--teacher dense: the classifier of 'ten\.pth' does not fit, and the new one cannot teach"
    ):
        said(*TINY_DATA, *PAD, "--init", "ten.pth", *CUT, "--teacher", "dense", "--dry_run")


def test_a_run_goes_on_and_the_network_teaches_itself(tmp_path, monkeypatch):
    torch.save(akamaster(3), tmp_path / "bare.pth")
    flags = ["--lr", "0.01", *PAD, "--init", "bare.pth", *CUT, "--prune_phase", "init", "--teacher", "dense"]
    whole = trains_and_resumes(tmp_path, monkeypatch, *flags, network=None)
    assert all(row["train"]["KD"] > 0 for row in whole["rows"])
    assert whole["teaching"]["own"].keys() >= {"stem.layer.weight"}
    assert json.loads(Path("whole/config.json").read_text())["settings"]["teacher"] == "dense"


def test_what_does_not_fit_is_one_line(said):
    state = akamaster(3)
    torch.save(state | {"module.extra.weight": torch.ones(3, 4)}, "more.pth")
    torch.save({name: value for name, value in state.items() if "layer3.2.bn2" not in name}, "less.pth")
    torch.save(nn.Sequential(nn.Linear(3, 3)), "code.pth")
    torch.save({"epoch": 3}, "none.pth")
    Path("garbage.pth").write_bytes(b"garbage")
    torch.save(state, "whole.pth")
    for name, message in (
        ("more", "is of another network than resnet20.* 'extra.weight', float32 of shape .3, 4., has no counterpart"),
        ("less", "'layer3.2.conv2' has nothing for 'stage3.2.conv2.norm.weight', float32 of shape .64,."),
        ("code", r"'code.pth' holds a whole module, or other code, which is not run: save its state_dict\(\)"),
        ("none", "holds no state dict, by itself or under state_dict, model, net, model_state_dict"),
        ("garbage", "is truncated or no checkpoint"),
    ):
        with pytest.raises(Refused, match=message) as caught:
            said(*TINY_DATA, *PAD, "--init", f"{name}.pth")
        assert "\n" not in str(caught.value)
    with pytest.raises(Refused, match=r"'whole\.pth' is from elsewhere, and does not say of which network: type --arch"):
        said(*TINY_DATA, "--init", "whole.pth")
    with pytest.raises(
        Refused, match=r"another network than resnet32.* 'layer2.0.conv1.weight' is float32 of shape .32, 16, 3, 3."
    ):
        said(*TINY_DATA, "--layers", "32", "--shortcut", "pad", "--init", "whole.pth")
    assert not Path("result").exists()


@pytest.fixture
def hub(tmp_path):
    """A folder in which torch finds random weights under the name of torchvision's, instead of downloading them."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "hub")
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)


def test_torchvisions_weights_bring_their_normalisation(said, hub):
    known = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V2
    state = torchvision.models.mobilenet_v2().state_dict()
    torch.save(state, hub / Path(known.url).name)
    lines = said(*LARGE, "--init", "torchvision:IMAGENET1K_V2", "--lr", "1e-30", "--weight_decay", "0", "--out_dir", "run")
    assert "weights from elsewhere, 'torchvision:IMAGENET1K_V2': 314 tensors; the classifier is new, for 3 classes" in lines
    assert "images are normalised by the mean and deviation of ImageNet" in lines
    assert "data as in" not in lines
    saved = torch.load("run/checkpoint.pt", weights_only=True)
    torch.testing.assert_close(saved["model"]["stem.layer.weight"], state["features.0.0.weight"])
    assert saved["settings"]["normalise"] == "imagenet"
    assert saved["data"]["mean"] == pytest.approx([255 * value for value in NORMALISATIONS["imagenet"][0]])
    assert saved["data"]["std"] == pytest.approx([255 * value for value in NORMALISATIONS["imagenet"][1]])
    typed = said(*LARGE, "--init", "torchvision:IMAGENET1K_V2", "--normalise", "half", "--dry_run")
    assert "images are normalised by half the range of a byte" in typed


def test_a_download_does_not_speak_on_stdout(said, hub, monkeypatch, capsys):
    state = torchvision.models.mobilenet_v2().state_dict()
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, file, *_, **__: torch.save(state, file))
    run_program(*LARGE, "--init", "torchvision:IMAGENET1K_V1", "--dry_run")
    out, err = capsys.readouterr()
    assert "Downloading" in err
    assert "Downloading" not in out


@pytest.mark.parametrize("content", ['{"model_type": "resnet"}', "no JSON"])
def test_a_config_of_others_beside_a_file_says_nothing(said, content):
    tiny = [*TINY_DATA, "--epochs", "1", "--batch_size", "27"]
    torch.save(akamaster(3), "whole.pth")
    Path("config.json").write_text(content)
    assert "its classifier of 3 classes is kept" in said(*tiny, *PAD, "--init", "whole.pth", "--out_dir", "run")
    # nor beside files of this program, which say themselves what their data was; in a run's folder it is its record
    for file in ("model.pt", "checkpoint.pt"):
        Path("run", file).rename(file)
        said("--init", file, *TINY_DATA[:4], "--device", "cpu", "--dry_run")
        said("--evaluate", file, *TINY_DATA[:4], "--device", "cpu")
    Path("run", "config.json").write_text(content)
    with pytest.raises(Refused, match=r"'run/config.json' is .* record of a run"):
        said("--init", "run", "--dry_run")


def test_a_folder_with_a_model_alone_is_begun_with(said):
    said(*TINY_DATA, *PAD, "--epochs", "1", "--batch_size", "27", "--out_dir", "run")
    Path("shipped").mkdir()
    Path("run", "model.pt").rename("shipped/model.pt")
    lines = said("--init", "shipped", *TINY_DATA[:4], "--device", "cpu", "--epochs", "1", "--dry_run")
    assert "data as in 'shipped': --image_size 16" in lines


def test_torchvisions_weights_that_cannot_be_had_are_one_line(said, hub, monkeypatch):
    def no_network(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(
        Refused, match=r"no download of https://.*mobilenet_v2.* .*no route to host.*: fetch it, and type --init FILE"
    ):
        said(*LARGE, "--init", "torchvision:IMAGENET1K_V1")
    with pytest.raises(Refused, match="torchvision's mobilenet_v2 has no weights 'IMAGENET1K_V3': did you mean 'IMAGENET1K_V"):
        said(*LARGE, "--init", "torchvision:IMAGENET1K_V3")
    with pytest.raises(
        Refused, match=r"torchvision has no weights of resnet18: choose --arch from resnet18\(stem='imagenet'\), "
    ):
        said(*TINY_DATA, "--arch", "resnet18", "--init", "torchvision:IMAGENET1K_V1")
    features = ["--arch", "vgg16(head='imagenet', norm=False)", "--init", "torchvision:IMAGENET1K_FEATURES"]
    with pytest.raises(Refused, match="these weights have no classifier"):
        said(*TINY_DATA, "--image_size", "32", *features)
    keywords = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V2.transforms.keywords
    monkeypatch.setitem(keywords, "mean", (0.1, 0.2, 0.3))
    with pytest.raises(Refused, match="these weights are for images that are normalised as no --normalise does"):
        said(*LARGE, "--init", "torchvision:IMAGENET1K_V2")


def test_torchvisions_detector_begins_a_run(monkeypatch, tmp_path):
    """Its heads that place boxes are kept, those that name them are new for other classes; it brings its normalisation."""
    theirs = torchvision.models.detection.ssd300_vgg16(weights=None, weights_backbone=None, num_classes=91)
    state = theirs.state_dict()
    weights = torchvision.models.detection.SSD300_VGG16_Weights
    monkeypatch.setattr(weights, "get_state_dict", lambda *_, **__: state)
    asked = ["--dataset", "voc", "--data_dir", str(tmp_path), "--arch", "ssd300_vgg16(norm=False)", "--init"]
    found = from_elsewhere(parse([*asked, "torchvision:COCO_V1"]))
    assert found.wants == "caffe"
    assert found.settings(parse([*asked, "torchvision:COCO_V1"])).data.normalise == "caffe"
    mean, std = normalisation("caffe", 3, None)
    torch.testing.assert_close(mean / 255, torch.tensor(theirs.transform.image_mean))
    torch.testing.assert_close(std / 255, torch.tensor(theirs.transform.image_std))
    assert (len(found.classes), found.classes[0]) == (90, "person")
    network = models.build("ssd300_vgg16(norm=False)", classes=2)
    found.give_to(network)
    assert found.settings(parse([*asked, "torchvision:COCO_V1"])).data.image_size == 300
    assert found.others == {f"classes{number}": 91 * boxes for number, boxes in enumerate((4, 6, 6, 6, 4, 4), start=1)}
    assert torch.equal(network.boxes2.layer.weight, state["head.regression_head.module_list.1.weight"])
    assert torch.equal(network.scale.layer.weight.flatten(), state["backbone.scale_weight"])

    # a file, of the same classes: everything is used
    torch.save(state, tmp_path / "ssd.pth")
    found = from_elsewhere(parse([*asked, str(tmp_path / "ssd.pth")]))
    network = models.build("ssd300_vgg16(norm=False)", classes=90)
    found.give_to(network)
    assert (found.others, found.wants) == ({}, "caffe")
    assert torch.equal(network.classes2.layer.weight, state["head.classification_head.module_list.1.weight"])
    for broken, message in (
        ({"head.more.weight": torch.zeros(2)}, "'head.more.weight', .* has no counterpart in SSD300"),
        (
            {"backbone.features.0.bias": torch.full((64,), torch.nan)},
            r"'conv1_1.layer.bias', .* holds numbers that are not finite",
        ),
        ({"backbone.extra.0.7.1.bias": torch.zeros(3)}, r"'conv6.layer.bias' is .*3.*, not"),
        ({"backbone.features.0.bias": torch.full((64,), 1e300, dtype=torch.float64)}, "holds numbers that are not finite"),
        ({"backbone.scale_weight": torch.ones(32, 16).T}, "'scale.layer.weight' is float32 of shape .*16, 32.*, not"),
        ({name: state[name][:8] for name in state if name.startswith("head.regression_head.module_list.0.")}, "'boxes1.layer.w"),
        ({name: state[name][:8] for name in state if name.startswith("head.classification_head.module_list.0.")}, "'classes1.la"),
    ):
        with pytest.raises(ValueError, match=message):
            fitted(network, state | broken)
    for missing, name in (("backbone.features.2.bias", "conv1_2.layer.bias"), ("backbone.scale_weight", "scale.layer.weight")):
        with pytest.raises(ValueError, match=f"it has nothing for '{name}'"):
            fitted(network, {key: value for key, value in state.items() if key != missing})
    with pytest.raises(ValueError, match=r"'conv9_1.layer.weight', .* has no counterpart in the network"):
        fitted(models.build("ssd300_vgg16(norm=False, maps=3)", classes=90), state)
    with pytest.raises(Refused, match=r"torchvision has no weights of ssd300_vgg16: choose .*, ssd300_vgg16\(norm=False\)"):
        from_elsewhere(parse([*asked[:5], "ssd300_vgg16", "--init", "torchvision:COCO_V1"]))
