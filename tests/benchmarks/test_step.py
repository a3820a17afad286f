"""These tests run benchmarks/step.py at a tiny size, and check the published engine that it times."""

import multiprocessing
import re
from types import SimpleNamespace

import programs
import pytest
import torch
import torch.nn.functional as F

import models
from benchmarks import step, step_variants
from benchmarks.published import Published
from pruning.scopes import global_
from settings.registry import DISTILLATIONS
from tasks.images import Images


@pytest.fixture
def published():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, 32, 32, 3), generator=generator, dtype=torch.uint8)
    return Published("resnet20", 4, Images(pixels, torch.arange(8)), "cpu", workers=0)


def test_the_benchmark_prints_every_variant(capsys, tmp_path, monkeypatch):
    forked = SimpleNamespace(Pipe=multiprocessing.Pipe, get_context=lambda _: programs.CONTEXT)
    monkeypatch.setattr(step_variants, "multiprocessing", forked)
    flags = ["--networks", "resnet20", "--batches", "8", "--steps", "2", "--warmup", "1", "--workers", "0", "--device", "cpu"]
    step.main([*flags, "--json", str(tmp_path / "rows.jsonl")])
    out = capsys.readouterr().out
    for name in ("dense", "ours", "published"):
        assert re.search(rf"\| {name} \| [1-9]\d*\.\d \(", out), out
    for stage in ("data", "forward", "backward", "optimiser", "regulariser", "masks, once in 5625 steps"):
        assert f"{stage}" in out
    assert (tmp_path / "rows.jsonl").read_text().count("\n") == 1
    step.main(["--networks", "resnet50", "--batches", "1024", "--memory", "1", "--device", "cpu"])
    assert "not measured" in capsys.readouterr().out


def test_a_step_with_each_distillation_loss_is_a_row(capsys):
    flags = ["--networks", "resnet20", "--batches", "8", "--steps", "1", "--warmup", "0", "--device", "cpu", "--skip_published"]
    step.main([*flags, "--teacher"])
    out = capsys.readouterr().out
    for name in (*DISTILLATIONS.entries, "teacher's pass"):
        assert re.search(rf"\| {name} \| \d+\.\d \(", out), out


def test_the_published_mask_is_its_rule(published):
    published.update_masks()
    units = published.model.units
    scores = {name: unit.weight.detach().abs().mean((1, 2, 3)) for name, unit in units.items()}
    keep = global_(scores, 0.6, normalise="none", floor=0, threshold="published")
    for name, unit in units.items():
        assert torch.equal(unit.gate.mask[:, 0, 0, 0].bool(), keep[name]), name
    cut = sum(int((unit.gate.mask[:, 0, 0, 0] == 0).sum()) for unit in units.values())
    assert cut == int(0.6 * 784) + 1


def test_the_published_step_takes_the_gradient_at_the_masked_network(published):
    published.update_masks()
    unit = published.model.stage1[0].conv1
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    masked = (unit.weight * unit.gate.mask).detach().requires_grad_(True)
    wanted = torch.autograd.grad(F.conv2d(x, masked, padding=1).square().sum(), masked)[0]
    got = torch.autograd.grad(unit.gate.product(unit, x).square().sum(), unit.weight)[0]
    torch.testing.assert_close(got, wanted)
    assert published.regulariser() == 0
    losses = [published.step() for _ in range(5)]
    assert all(loss > 0 for loss in losses)
    assert published.steps == 5


def test_the_traffic_is_seven_passes():
    network = models.build("resnet20")
    outputs = 7 * 16 * 1024 + (6 + 1) * 32 * 256 + (6 + 1) * 64 * 64 + 10
    assert step.traffic(network, 2, 32) == 7 * 2 * 2 * outputs
