"""These tests hold what a ticket's weights begin with against the layer's weights that they are made from."""

import pytest
import torch

from training.initial_values import KINDS, other_values

pytestmark = pytest.mark.core


def made(kind: str, weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return other_values(kind, weight, mask, torch.Generator().manual_seed(0))


def test_the_worked_signed_constant():
    weight = torch.tensor([[0.3, -0.1, 0.2, -0.4]])
    wanted = 0.273861 * torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    torch.testing.assert_close(made("signed_constant", weight, torch.ones(1, 4).bool()), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "signed_constant"])
@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (6, 5), (6,)], ids=["weights", "kernels", "filters"])
def test_a_permutation_keeps_the_values_of_what_it_moves_and_signs_where_asked(kind, shape):
    weight = torch.randn(6, 5, 3, 3)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
    kept = mask.view(*shape, *[1] * (4 - len(shape))).expand_as(weight)
    values, signed = made(kind, weight, mask), kind.startswith("signed")
    assert not torch.equal(values[kept], weight[kept])
    compared = torch.abs if signed else torch.clone
    moved = kept if kind.endswith("kept") else torch.ones_like(kept)
    assert torch.equal(compared(values[moved]).sort().values, compared(weight[moved]).sort().values)
    assert torch.equal(values[~moved], weight[~moved])
    assert torch.equal(values.sign(), weight.sign()) == signed
