"""The engine says where and how a run computes: its device, its precision and its random state; signals end it."""

import contextlib
import ctypes
import os
import random
import signal
from collections.abc import Callable, Iterator
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
        """Choose what --device, --amp and --compile say, and where they say nothing what is fastest on this machine.

        `asked` is the section of the settings about the engine. The process's threads and its use of memory are set up
        too. Raises Refused if the machine does not have the device.
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
        return f"{self.precision}{', compiled' if self.compile else ''}"

    @property
    def precision(self) -> str:
        """The name of the numbers that a forward pass computes with."""
        return "float32" if self.amp == "off" else self.amp

    def autocast(self) -> torch.autocast:
        """Make a context in which a forward pass has the engine's precision."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.amp == "bfloat16")

    def compiled(self, function: Callable, alone: bool = True) -> Callable:
        """Capture a function by torch.compile, where the engine compiles; otherwise return it as it is.

        Its operations are fused, and on CUDA replayed as graphs, but only for a process `alone`: graphs cannot hold
        DistributedDataParallel's communication.
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
        """Seed every random state, and let torch be deterministic where that was asked for."""
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        torch.backends.cudnn.benchmark = not self.deterministic
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)


def keep_freed_memory() -> None:
    """Let malloc keep what is freed, by glibc's mallopt; with other libraries nothing happens.

    Otherwise every large tensor of every step would be new pages from the system, which it fills with zeros first.
    """
    threshold, trim = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  (other libraries number their options differently)
        library.mallopt(threshold, 2**31 - 1)
        library.mallopt(trim, 2**31 - 1)


class Stop:
    """SIGINT and SIGTERM end the run: after the present step or, in a block that is `at_once`, where they arrive.

    A second signal ends the process itself.
    """

    def __init__(self):
        self.signal, self._doing = None, None

    def check(self, where: str) -> None:
        """Raise Stopped, whose message says `where` the run is, if a signal asked for it."""
        if self.signal:
            raise Stopped(self.signal, f"{self.signal.name} {where}")

    @contextlib.contextmanager
    def at_once(self, where: str) -> Iterator[None]:
        """Within this block, which writes no file, a signal raises Stopped as it arrives; its message says `where`."""
        outer, self._doing = self._doing, where
        try:
            yield
        finally:
            self._doing = outer
        self.check(where)  # a library may have taken the exception for one of its own

    def listen(self) -> None:
        """Take the signals from now on."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number, _) -> None:
        self.signal = signal.Signals(number)
        signal.signal(number, signal.SIG_DFL)
        if self._doing is not None:
            self.check(self._doing)
