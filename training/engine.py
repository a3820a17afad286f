"""The engine says where and how a run computes: its device, its precision and its random state; signals end it."""

import contextlib
import ctypes
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from settings.errors import Refused, Stopped


@dataclass(frozen=True)
class Engine:
    """The device and the precision that a run computes with, and whether its passes are compiled."""

    device: str
    amp: str
    compile: bool
    deterministic: bool

    @classmethod
    def choose(cls, asked) -> "Engine":
        """What --device, --amp and --compile say, or the best there is. Refused if the device asked for is not there.

        The process's threads and its use of memory are set up too.
        """
        present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        device = asked.device or next(name for name, is_there in present.items() if is_there)
        if not present[device]:
            usable = ", ".join(name for name, is_there in present.items() if is_there)
            raise Refused(f"--device {device}: torch finds no such device here; choose from {usable}")
        # without the processor's own instructions bfloat16 is emulated, and slower than float32
        native = device == "cuda" or (device == "cpu" and torch.cpu._is_avx512_bf16_supported())
        amp = asked.amp or ("bfloat16" if native else "off")
        if asked.threads is not None:
            torch.set_num_threads(asked.threads)
        if device == "cpu":
            keep_freed_memory()
        elif device == "cuda":
            # what stays float32 beside bfloat16, such as the regulariser, may round; --amp off is float32 in full
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = amp == "bfloat16"
        return cls(device, amp, device == "cuda" if asked.compile is None else asked.compile, asked.deterministic)

    def __str__(self) -> str:
        precision = "float32" if self.amp == "off" else self.amp
        return f"{precision}{', compiled' if self.compile else ''}"

    def autocast(self) -> torch.autocast:
        """A context that puts a forward pass into the precision chosen."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.amp == "bfloat16")

    def compiled(self, function: Callable, alone: bool = True) -> Callable:
        """The function captured by torch.compile where that is asked for: fused, and on CUDA replayed as CUDA graphs.

        Graphs are for a process `alone`: DistributedDataParallel's own communication is not captured.
        """
        if not self.compile:
            return function
        mode = "reduce-overhead" if self.device == "cuda" and alone else None
        captured = torch.compile(function, mode=mode, dynamic=False)

        def step(*arguments):
            torch.compiler.cudagraph_mark_step_begin()
            return captured(*arguments)

        return step

    def seed(self, seed: int) -> None:
        """Set every random state, and deterministic algorithms where they are asked for."""
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        torch.backends.cudnn.benchmark = not self.deterministic
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)


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


class Stop:
    """SIGINT and SIGTERM end the run after the current step; a second one ends it at once."""

    def __init__(self):
        self.signal = None

    def check(self, where: str) -> None:
        """Stopped, saying where the run is, if a signal asked for it."""
        if self.signal:
            raise Stopped(self.signal, f"{self.signal.name} {where}")

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number, _) -> None:
        self.signal = signal.Signals(number)
        signal.signal(number, signal.SIG_DFL)
