"""These tests hold the coding of weights against the paper's worked examples, and decode what they encode."""

import numpy as np
import pytest
import torch

from models.coding import decode, encode, relative


def test_gaps_are_filled_with_zeros():
    """Entries at 1, 4 and 15, counted from 1, with distances of at most 8: one zero is stored, at 12."""
    distances, real = relative(np.array([0, 3, 14]), 8)
    assert (distances.tolist(), real.tolist()) == ([1, 3, 8, 3], [True, True, False, True])


def test_a_huffman_code_takes_15_bits():
    """Counts of 5, 2, 1 and 1: codes of 1, 2, 3 and 3 bits."""
    numbers = torch.tensor([1] * 5 + [2] * 2 + [3, 4])
    assert encode(numbers, torch.arange(5.0), 5).header[1] == 15


@pytest.mark.core
@pytest.mark.parametrize("index_bits", [1, 5, 8])
@pytest.mark.parametrize(
    ("size", "density", "values"),
    [(500, 0.1, 15), (500, 0.0, 3), (1, 1.0, 1), (5000, 0.002, 31), (3000, 0.5, 255), (300, 1.0, 1)],
)
def test_what_is_encoded_is_decoded(size, density, values, index_bits):
    numbers = torch.randint(1, values + 1, (size,)) * (torch.rand(size) < density)
    codebook = torch.cat([torch.zeros(1), torch.randn(values)])
    coded = encode(numbers.view(1, -1), codebook, index_bits)
    weight, used = decode(memoryview(coded.content), coded.header, torch.Size((1, size)))
    assert torch.equal(weight, codebook[numbers].view(1, -1))
    assert used == len(coded.content) == sum(coded.bits.values()) // 8


def test_what_was_tampered_with_is_refused_or_another_weight():
    """Whatever byte is changed: never another error, and never an entry beyond the shape."""
    numbers = torch.randint(1, 8, (400,)) * (torch.rand(400) < 0.2)
    coded = encode(numbers, torch.cat([torch.zeros(1), torch.randn(7)]), 5)
    refused = 0
    for place in range(len(coded.content)):
        content = bytearray(coded.content)
        content[place] ^= 0x55
        try:
            weight, _ = decode(memoryview(content), coded.header, numbers.shape)
        except ValueError:
            refused += 1
        else:
            assert weight.shape == numbers.shape
    assert refused > 0
    with pytest.raises(ValueError, match="cut short"):
        decode(memoryview(coded.content[:-1]), coded.header, numbers.shape)
    for place in range(len(coded.header)):
        header = list(coded.header)
        header[place] += 1
        with pytest.raises(ValueError, match=r"."):
            decode(memoryview(coded.content), header, numbers.shape)
