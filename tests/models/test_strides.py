"""Convolutions with a stride learn what they should, whatever memory holds, and nothing else in memory is overwritten."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT

from models.layers import conv_unit
from pruning import OutputGate

pytestmark = pytest.mark.core
CHECKER = Path("/lib/x86_64-linux-gnu/libc_malloc_debug.so.0")  # of glibc: it looks for what was overwritten
PROGRAM = """
import torch
from models.layers import conv_unit
torch.manual_seed(0)
for channels in range(1, 17):
    unit = conv_unit(channels, 4, 1, stride=2).to(memory_format=torch.channels_last)
    x = torch.randn(27, channels, 32, 32).to(memory_format=torch.channels_last).requires_grad_(True)
    unit(x).square().sum().backward()
print("whole")
"""


@pytest.mark.parametrize("channels", [1, 2, 7, 16])
@pytest.mark.parametrize("gated", [False, True])
def test_gradients_are_those_of_the_plain_convolution(channels, gated):
    torch.manual_seed(0)
    unit = conv_unit(channels, 4, 1, stride=2, activation=False).double().to(memory_format=torch.channels_last)
    unit.norm = None
    if gated:
        unit.gate = OutputGate(4).double()
        unit.gate.mask[0] = 0
    x = torch.randn(3, channels, 9, 9, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_(True)
    unit(x).square().sum().backward()
    plain, weight = x.detach().clone().requires_grad_(True), unit.weight.detach().clone().requires_grad_(True)
    outputs = F.conv2d(plain, weight, stride=2)
    if gated:
        outputs = outputs * unit.gate.mask.view(-1, 1, 1)
    outputs.square().sum().backward()
    torch.testing.assert_close(x.grad, plain.grad)
    kept = slice(1, None) if gated else slice(None)  # what is masked may learn
    torch.testing.assert_close(unit.weight.grad[kept], weight.grad[kept])


@pytest.mark.parametrize(("kernel", "stride", "side"), [(3, 2, 1), (3, 3, 2), (7, 2, 1)])
@pytest.mark.parametrize(("filters", "groups"), [(64, 1), (16, 16)], ids=["plain", "depthwise"])
@pytest.mark.parametrize("gated", [False, True])
def test_weights_that_meet_only_zeros_have_no_gradient(kernel, stride, side, filters, groups, gated):
    """In bfloat16, and with memory full of NaN: without `computable` such a gradient is what memory held."""
    torch.manual_seed(0)
    unit = conv_unit(16, filters, kernel, stride, activation=False, groups=groups).to(memory_format=torch.channels_last)
    unit.norm = None
    if gated:
        unit.gate = OutputGate(filters)
        unit.gate.mask[0] = 0
    x = torch.randn(3, 16, side, side).to(memory_format=torch.channels_last)
    weight = unit.weight.detach().bfloat16().double().requires_grad_(True)
    outputs = F.conv2d(x.bfloat16().double(), weight, stride=stride, padding=kernel // 2, groups=groups)
    outputs.sum().backward()
    for _ in range(3):
        unit.weight.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            y = unit(x)
        assert y.shape == outputs.shape
        junk = [torch.full((2**power,), float("nan")) for power in range(4, 20) for _ in range(4)]
        del junk
        y.sum().backward()
        kept = slice(1, None) if gated else slice(None)
        torch.testing.assert_close(unit.weight.grad[kept].double(), weight.grad[kept], atol=0.05, rtol=0.02)
        assert unit.weight.grad.isfinite().all()


@pytest.mark.skipif(not CHECKER.exists(), reason="glibc's checker of memory is not here")
def test_no_memory_is_overwritten():
    checked = {"LD_PRELOAD": str(CHECKER), "GLIBC_TUNABLES": "glibc.malloc.check=3", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=os.environ | checked, capture_output=True, text=True, check=False
    )
    assert done.stdout == "whole\n", done.stderr[-300:]
