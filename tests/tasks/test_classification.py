"""These tests are about the task of classification: its loss, its meter, grey images."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_DATA, run_program
from PIL import Image

import models
import tasks
from settings.arguments import parse
from settings.errors import Refused
from settings.registry import DATASETS, TASKS
from tasks.classification import Classification


def test_every_data_set_has_a_task():
    for name in DATASETS.entries:
        assert tasks.task_of(name).metric
    assert list(TASKS.entries) == ["classification", "detection"]


def test_the_loss_is_the_mean_of_the_images_losses():
    logits, labels = torch.randn(6, 4, dtype=torch.float64), torch.randint(0, 4, (6,))
    by_hand = -(logits - logits.logsumexp(1, keepdim=True))[torch.arange(6), labels]
    torch.testing.assert_close(Classification.image_losses(logits, labels), by_hand)
    torch.testing.assert_close(Classification.losses(logits, labels)["cross_entropy"].double(), by_hand.mean())


def test_the_meter_adds_up_batches_of_different_sizes():
    logits, labels = torch.randn(10, 8), torch.randint(0, 8, (10,))
    meter = Classification.meter("cpu")
    for part in (slice(0, 7), slice(7, 10)):
        terms = Classification.losses(logits[part], labels[part])
        meter.add(logits[part], labels[part], {**terms, "penalty": torch.tensor(2.0)})
    read = meter.read()
    assert next(iter(read)) == Classification.metric
    assert read["top1"] == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
    in_five = (logits.topk(5).indices == labels[:, None]).any(1)
    assert read["top5"] == pytest.approx(100 * in_five.float().mean().item())
    assert read["cross_entropy"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert read["penalty"] == pytest.approx(2.0)
    assert read["loss"] == pytest.approx(read["cross_entropy"] + 2.0)
    assert read["images"] == 10
    assert int(meter.first_bad) == -1
    meter.add(logits, labels, {"cross_entropy": torch.tensor(float("nan")), "penalty": torch.tensor(0.0)})
    assert int(meter.first_bad) == 2


def test_grey_images_have_one_channel_from_the_file_to_the_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = [*TINY_DATA, "--channels", "1"]
    task = tasks.load(parse(flags).data, batch_size=8, seed=0, device="cpu")
    assert task.inputs == (1, 16, 16)
    colour = tasks.load(parse(TINY_DATA).data, batch_size=8, seed=0, device="cpu")
    path = sorted((Path(TINY_DATA[3]) / "test" / "blue").iterdir())[0]
    assert torch.equal(task.test.pixels[0, ..., 0], torch.from_numpy(np.array(Image.open(path).convert("L"))))
    assert colour.inputs == (3, 16, 16)
    pruned = ["--prune_type", "structured", "--prune_rate", "0.5", "--compact", "--export", "m.onnx"]
    run_program(*flags, "--layers", "20", "--epochs", "1", "--batch_size", "18", *pruned, "--out_dir", "run", "--quiet")
    assert "largest difference" in capsys.readouterr().out
    network = models.load("run/model.pt")
    assert network.input_channels == 1
    assert len(network.card.mean) == 1
    run_program("--evaluate", "run/model.pt", "--quiet")
    run_program("--predict", "run/model.pt", str(path), "--quiet")
    assert path.name in capsys.readouterr().out


def test_channels_are_for_folders():
    with pytest.raises(Refused, match="--channels"):
        parse(["--channels", "1"])
    with pytest.raises(Refused, match="how many channels there are"):
        parse(["--arch", "resnet20(channels=1)"])
