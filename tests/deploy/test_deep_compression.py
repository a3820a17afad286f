"""These tests are about the form of Deep Compression: shared weights, its file, and the bits that it counts."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY, TwoBlocks, run_program

import models
from deploy.forms.deep_compression import deep_compression
from deploy.sharing import k_means
from models import Card
from pruning.gates.scale import put_scales
from pruning.removal import Removal
from settings.arguments import parse
from settings.errors import Failed, Refused
from tasks.classification import Classification

# figure 3 of the paper
WEIGHTS = [[2.09, -0.98, 1.48, 0.09], [0.05, -0.14, -1.08, 2.12], [-0.91, 1.92, 0, -1.03], [1.87, 0, 1.53, 1.49]]
GRADIENTS = [[-0.03, -0.01, 0.03, 0.02], [-0.01, 0.01, -0.02, 0.12], [-0.01, 0.02, 0.04, 0.01], [-0.07, -0.02, 0.01, -0.02]]
PLACES = [[3, 0, 2, 1], [1, 1, 0, 3], [0, 3, 1, 0], [3, 1, 2, 2]]


def test_the_papers_figure():
    values, places = k_means(torch.tensor(WEIGHTS).flatten().numpy(), 4)
    assert values == pytest.approx([-1.0, 0.0, 1.5, 2.0], abs=1e-6)
    assert places.reshape(4, 4).tolist() == PLACES
    codebook = torch.tensor(values, requires_grad=True)
    (codebook[torch.tensor(PLACES)] * torch.tensor(GRADIENTS, dtype=torch.float64)).sum().backward()
    assert codebook.grad.tolist() == pytest.approx([-0.03, 0.04, 0.02, 0.04])
    assert (codebook - codebook.grad).tolist() == pytest.approx([-0.97, -0.04, 1.48, 1.96], abs=1e-6)


def test_fewer_distinct_weights_than_values_stay_as_they_are():
    values, places = k_means(torch.tensor([0.5, -1.0, 0.5]).numpy(), 31)
    assert values[places].tolist() == [0.5, -1.0, 0.5]


class Task:
    """The sample of training batches that a form is trained on."""

    losses = staticmethod(Classification.losses)

    @staticmethod
    def sample(batches):
        generator = torch.Generator().manual_seed(0)
        for _ in range(batches):
            yield torch.randn(8, 3, 8, 8, generator=generator), torch.randint(0, 4, (8,), generator=generator)


def pruned(density: float) -> TwoBlocks:
    network = TwoBlocks().eval()
    for unit in network.all_units.values():
        unit.layer.weight.data *= torch.rand_like(unit.layer.weight) < density
    return network


def test_a_branch_of_which_nothing_is_left_has_no_values_to_train():
    network = TwoBlocks()
    put_scales(network, "block")
    next(unit.gate for unit in network.all_units.values() if unit.gate is not None).scale.data.zero_()
    smaller = Removal(network).compact()
    assert any(unit.weight.numel() == 0 for unit in smaller.units.values())
    form = deep_compression(smaller, Task, batches=1)
    assert all(value.isfinite().all() for value in form.network.state_dict().values())


def test_training_the_values_lowers_the_loss_and_leaves_zeros():
    def made(batches):
        torch.manual_seed(1)
        network = pruned(0.5)
        before = {name: weight == 0 for name, weight in network.named_parameters() if "layer.weight" in name}
        deep_compression(network, Task, conv_bits=3, linear_bits=2, batches=batches, lr=1e-2)
        assert all(torch.equal(network.get_parameter(name) == 0, zeros) for name, zeros in before.items())
        assert network.a1.weight.unique().numel() <= 2**3
        assert network.classifier.weight.unique().numel() <= 2**2
        inputs, targets = next(Task.sample(1))
        return Classification.losses(network(inputs), targets)["cross_entropy"].item()

    assert made(40) < made(0)


def test_values_that_are_not_finite_are_no_form():
    with pytest.raises(Failed, match="trained at lr=1e\\+20 the shared values are not finite: choose a smaller one"):
        deep_compression(pruned(0.5), Task, batches=8, lr=1e20)


@pytest.mark.core
def test_a_run_makes_the_file_that_other_commands_take(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    form = "deep_compression(conv_bits=4, batches=2)"
    flags = ["--prune_type", "unstructured", "--prune_rate", "0.9", "--out_dir", "run", "--quiet", "--form", form]
    run_program(*TINY, "--epochs", "1", *flags)
    said = capsys.readouterr().out
    result = json.loads(Path("run/summary.json").read_text())["form"]
    path = Path("run/deep_compression.pt")
    assert result["bytes"] == path.stat().st_size
    assert sum(result["bits"].values()) == 8 * result["bytes"]
    assert sum(sum(bits.values()) for bits in result["layers"].values()) == 8 * result["bytes"] - result["bits"]["header"]
    assert result["bits"]["header"] < 8 * 6000
    assert result["dense_bytes"] == 4 * 272_019
    assert f"{result['dense_bytes'] / result['bytes']:.1f} times smaller than dense float32" in said
    network = models.load(path)
    assert sum(int((unit.weight != 0).sum()) for unit in network.all_units.values()) < 27_100
    assert network.stem.weight.unique().numel() <= 2**4
    run_program("--evaluate", str(path), "--quiet")
    assert f"result test accuracy: {result['after']:.2f}," in capsys.readouterr().out
    run_program("--resume", "run", "--quiet")  # what has ended is told again
    assert "result form: run/deep_compression.pt" in capsys.readouterr().out
    path.unlink()
    run_program("--resume", "run", "--quiet")
    assert path.exists()
    whole = path.read_bytes()
    for content in (whole[:-100], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(Refused):
            models.load(path)


def test_a_file_of_another_length_is_refused(tmp_path):
    form = deep_compression(models.build("resnet20"), Task, batches=0)
    form.save(tmp_path / "m.pt", Card("resnet20", [str(n) for n in range(10)], 32, [0.0] * 3, [1.0] * 3))
    state = torch.load(tmp_path / "m.pt", weights_only=True)
    for content in (state["bytes"][:-4], torch.cat([state["bytes"], torch.zeros(4, dtype=torch.uint8)])):
        torch.save({**state, "bytes": content}, tmp_path / "other.pt")
        with pytest.raises(Refused, match=r"cut short|longer than its network"):
            models.load(tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--form", "deep_compresion"], "did you mean 'deep_compression'"),
        (["--form", "deep_compression(conv_bits=9)"], "conv_bits"),
        (["--form", "deep_compression", "--prune_type", "structured"], "it needs --compact"),
    ],
)
def test_a_form_that_cannot_be_made_is_refused(flags, message):
    with pytest.raises(Refused, match=message):
        parse(flags)
