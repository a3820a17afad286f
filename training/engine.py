"""Where and how things run: device, precision, threads, random state, and signals that end them."""

import contextlib
import ctypes
import os
import random
import signal
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from settings.errors import Refused


def choose_device(settings) -> None:
    """The best device there is, and its precision. Refused if the one asked for is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    settings.device = settings.device or next(name for name, present in there.items() if present)
    if not there[settings.device]:
        raise Refused(
            f"--device {settings.device}: torch finds no such device here; choose from {', '.join(n for n in there if there[n])}"
        )
    if settings.amp is None:
        # without the processor's own instructions bfloat16 is emulated, and slower than float32
        native = settings.device == "cuda" or (settings.device == "cpu" and torch.cpu._is_avx512_bf16_supported())
        settings.amp = "bfloat16" if native else "off"
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if settings.compile is None:
        settings.compile = settings.device == "cuda"
    if settings.device == "cpu":
        keep_freed_memory()
    elif settings.device == "cuda":
        # what stays float32 beside bfloat16, such as the regulariser, may round its factors; --amp off is float32 in full
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings.amp == "bfloat16"


def keep_freed_memory() -> None:
    """Let malloc keep what is freed: at every step each large tensor would be new pages from the system, zeroed.

    By glibc's mallopt; elsewhere nothing happens.
    """
    threshold, trim = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  (other libraries number their options otherwise)
        library.mallopt(threshold, 2**31 - 1)
        library.mallopt(trim, 2**31 - 1)


def compiled(function: Callable, settings, alone: bool = True) -> Callable:
    """The function captured by torch.compile where --compile asks for it: fused, and on CUDA replayed as CUDA graphs.

    Graphs are for a process `alone`: DistributedDataParallel's own communication is not captured.
    """
    if not settings.compile:
        return function
    captured = torch.compile(function, mode="reduce-overhead" if settings.device == "cuda" and alone else None, dynamic=False)

    def step(*arguments):
        torch.compiler.cudagraph_mark_step_begin()
        return captured(*arguments)

    return step


def autocast(settings) -> Callable:
    """What puts a forward pass into the precision chosen."""
    return partial(torch.autocast, settings.device, torch.bfloat16, enabled=settings.amp == "bfloat16")


def seed_everything(settings) -> None:
    random.seed(settings.seed)
    np.random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    torch.backends.cudnn.benchmark = not settings.deterministic
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


class Stop:
    """SIGINT and SIGTERM end the run after the current step; a second one ends it at once."""

    def __init__(self):
        self.signal = None

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number, _) -> None:
        self.signal = signal.Signals(number)
        signal.signal(number, signal.SIG_DFL)
