"""A network that gates have emptied altogether is timed and exported as any other, for any number of images."""

import pytest
import torch

import models
from deploy.forms.onnx import timed
from pruning import Learner
from pruning.removal import Removal


@pytest.mark.parametrize("arch", ["lenet5", "resnet20", "vgg16(widen=0.1)"])
def test_it_takes_any_number_of_images(arch):
    network = models.build(arch, channels=1, size=32).eval()
    learner = Learner(network, prune_type="structured", gate="hard_concrete(on='inputs')")
    for gate in learner.gates.values():
        gate.log_alpha.data.fill_(-4.0)
    smaller = Removal(network).compact().eval()
    assert not any(unit.filters for unit in smaller.prunable_convolutions.values())
    program = torch.export.export(
        smaller, (torch.zeros(2, 1, 32, 32),), dynamic_shapes=({0: torch.export.Dim("n", min=1)},)
    ).module()
    assert program(torch.zeros(3, 1, 32, 32)).shape == (3, 10)
    assert [row["compact"]["ms"] > 0 for row in timed({"compact": smaller}, (32, 32), (1, 3))] == [True, True]
