"""Where and how things run: device, precision, threads, random state, and signals that end them."""

import os
import random
import signal
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from arguments import RefusalError


def choose_device(settings) -> None:
    """The best device there is, and its precision. RefusalError if the one asked for is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    settings.device = settings.device or next(name for name, present in there.items() if present)
    if not there[settings.device]:
        raise RefusalError(
            f"--device {settings.device}: torch finds no such device here; choose from {', '.join(n for n in there if there[n])}"
        )
    if settings.amp is None:
        # without the processor's own instructions bfloat16 is emulated, and slower than float32
        native = settings.device == "cuda" or (settings.device == "cpu" and torch.cpu._is_avx512_bf16_supported())
        settings.amp = "bfloat16" if native else "off"
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)


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
