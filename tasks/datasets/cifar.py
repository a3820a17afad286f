"""CIFAR-10 and CIFAR-100 through torchvision."""

import contextlib
import sys
from pathlib import Path

import torch

from settings.errors import Refused
from tasks.images import Images, one_line


def read_cifar(name: str, directory: Path) -> tuple[Images, Images, list[str]]:
    """CIFAR through torchvision: MD5 checked, downloaded when it is not there."""
    from torchvision import datasets

    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    parts = []
    for train in (True, False):
        # torchvision's own messages are not part of the run's output
        with contextlib.redirect_stdout(sys.stderr):
            try:
                part = source(str(directory), train=train, download=False)
            except (RuntimeError, OSError, EOFError, ValueError):
                try:
                    part = source(str(directory), train=train, download=True)
                except (RuntimeError, OSError, EOFError, ValueError) as error:
                    with contextlib.suppress(OSError):
                        directory.rmdir()  # torchvision made it for the download; if it holds anything it stays
                    raise Refused(
                        f"no usable {name} in '{directory}' and its download failed ({one_line(error)}): put the official "
                        f"python archive there, or use --dataset digits, or --dataset folder"
                    ) from None
        parts.append(Images(torch.from_numpy(part.data), torch.tensor(part.targets)))
    return *parts, part.classes
