"""A run's network can be used whatever it is: dense, with masks on weights, with masks on filters, or smaller."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY, TINY_DATA, run_program

import models
from deploy.opening import opened
from settings.errors import Refused

IMAGE = str(next((Path(TINY_DATA[3]) / "test").glob("*/*.png")))
KINDS = {
    "dense": [],
    "weights": ["--prune_type", "unstructured", "--prune_rate", "0.8"],
    "filters": ["--prune_type", "structured", "--prune_rate", "0.6"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder in which a run of each kind has its folder, and what each said."""
    folder = tmp_path_factory.mktemp("runs")
    for kind, flags in KINDS.items():
        run_program(*TINY, "--deterministic", "--quiet", "--amp", "off", *flags, "--out_dir", str(folder / kind))
    return folder


def accuracy(lines: str) -> str:
    (line,) = (line for line in lines.splitlines() if line.startswith("result test accuracy"))
    return line.split(": ")[1].split(",")[0].split()[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_evaluated_as_its_run_was_and_names_classes(runs, kind, capsys):
    test = json.loads((runs / kind / "summary.json").read_text())["test"]
    run_program("--evaluate", str(runs / kind), "--quiet")
    assert accuracy(capsys.readouterr().out) == f"{test['top1']:.2f}"
    run_program("--predict", str(runs / kind), IMAGE, "--quiet")
    assert capsys.readouterr().out.startswith(f"{IMAGE}: ")


@pytest.mark.parametrize("kind", ["dense", "weights"])
def test_a_network_without_masks_on_filters_is_in_a_file(runs, kind, capsys):
    saved, state = models.load(runs / kind / "model.pt"), torch.load(runs / kind / "checkpoint.pt", weights_only=True)["model"]
    for name, value in saved.state_dict().items():
        mask = state.get(name.replace("layer.weight", "gate.mask")) if name.endswith("layer.weight") else None
        assert torch.equal(value, state[name] if mask is None else state[name] * mask)
    zeros = sum(int((unit.weight == 0).sum()) for unit in saved.all_units.values())
    assert (zeros > 100_000) == (kind == "weights")
    told = json.loads((runs / kind / "summary.json").read_text())["file"]
    assert told == {"file": str(runs / kind / "model.pt"), "bytes": (runs / kind / "model.pt").stat().st_size}


@pytest.mark.parametrize("kind", ["dense", "weights"])
def test_such_a_network_is_exported_at_the_end_or_later(runs, kind, tmp_path, capsys):
    later = str(tmp_path / "later.onnx")
    run_program("--evaluate", str(runs / kind), "--export", later, "--quiet")
    run_program("--evaluate", later, *TINY_DATA[:4], "--quiet")
    exported, file = (accuracy(part) for part in capsys.readouterr().out.split("result export")[:2])
    assert exported == file
    run_program("--resume", str(runs / kind), "--export", str(tmp_path / "resumed.pt2"), "--quiet")
    assert "resumed.pt2" in capsys.readouterr().out


def test_masks_on_filters_are_in_no_file_and_no_export(runs, tmp_path):
    assert not (runs / "filters" / "model.pt").exists()
    with pytest.raises(Refused, match="take them out first, by --resume RUN --compact"):
        run_program("--evaluate", str(runs / "filters"), "--export", str(tmp_path / "x.onnx"), "--quiet")
    with pytest.raises(Refused, match="--export writes a network without masks: it needs --compact"):
        run_program(*TINY, *KINDS["filters"], "--export", str(tmp_path / "x.onnx"))
    assert not list(tmp_path.iterdir())


def test_a_run_that_goes_on_is_seen_by_its_checkpoint(runs, tmp_path):
    """A model.pt of an earlier end is not taken for the network of a run that has not ended again."""
    folder = tmp_path / "dense"
    folder.mkdir()
    for name in ("config.json", "checkpoint.pt", "metrics.jsonl", "summary.json"):
        (folder / name).write_bytes((runs / "dense" / name).read_bytes())
    (folder / "model.pt").write_bytes((runs / "weights" / "model.pt").read_bytes())
    assert "weights" not in str(opened(str(folder)).card.training["settings"]["prune_type"])
    assert opened(str(folder)).card.training["settings"]["prune_type"] == "unstructured"
    (folder / "summary.json").unlink()
    assert opened(str(folder)).card.training["settings"]["prune_type"] == "none"


def test_a_checkpoint_by_itself_is_opened_and_another_file_is_refused(runs, tmp_path):
    network = opened(str(runs / "filters" / "checkpoint.pt"))
    assert not network.training
    assert any(unit.gate is not None for unit in network.all_units.values())
    (tmp_path / "x.pt").write_bytes(b"no file of torch")
    with pytest.raises(Refused, match="is truncated or no model file"):
        opened(str(tmp_path / "x.pt"))
    torch.save({"format": 1, "weights": torch.zeros(2)}, tmp_path / "y.pt")
    with pytest.raises(Refused, match="model file"):
        opened(str(tmp_path / "y.pt"))
    with pytest.raises(Refused, match=f"--evaluate: no network in the folder '{tmp_path}'"):
        run_program("--evaluate", str(tmp_path))


def test_what_is_left_of_a_pruned_network_is_told_beside_the_whole_architecture(runs, tmp_path, capsys):
    run_program("--resume", str(runs / "filters"), "--compact", "--quiet")
    first = json.loads((runs / "filters" / "summary.json").read_text())
    assert first["architecture"] is None
    again = [*TINY, "--init", str(runs / "filters" / "model.pt"), "--prune_type", "structured", "--prune_rate", "0.5"]
    run_program(*[word for word in again if word not in ("--layers", "20")], "--prune_phase", "init", "--compact", "--quiet",
                "--out_dir", str(tmp_path / "again"))  # fmt: skip
    second = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert second["dense"] == first["left"]
    assert second["architecture"] == first["dense"]
    share = 100 * second["left"]["macs"] / first["dense"]["macs"]
    assert f"result of a whole resnet20: {100 * second['left']['parameters'] / first['dense']['parameters']:.2f} % of the " \
        f"parameters, {share:.2f} % of the MACs left" in capsys.readouterr().out  # fmt: skip


def test_a_network_with_zeros_goes_on_and_that_they_learn_again_is_said(runs, tmp_path, capsys):
    flags = [word for word in TINY if word not in ("--layers", "20")]
    run_program(*flags, "--init", str(runs / "weights"), "--out_dir", str(tmp_path / "again"))
    saved = models.load(runs / "weights" / "model.pt").all_units.values()
    zeros, number = sum(int((unit.weight == 0).sum()) for unit in saved), sum(unit.weight.numel() for unit in saved)
    assert f"{zeros} of {number} weights of '{runs / 'weights'}' are 0; they learn again" in capsys.readouterr().err
    again = models.load(tmp_path / "again" / "model.pt")
    assert not any((unit.weight == 0).any() for unit in again.all_units.values())
