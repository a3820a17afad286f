"""This file says how much memory pictures may take, so that what does not fit is read from its files instead."""

import os
from pathlib import Path

SHARE = 0.5  # of what is free, by default
GROUPS = (  # what a control group (version 2, version 1) allows a process and its relatives, and what these take
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def machine_memory() -> int:
    """Return the bytes of memory that the machine has; 4 GB where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 4 << 30


def free_memory(device: str = "cpu") -> int:
    """Return the bytes that this process may still take: of the machine, of its control group, and of a CUDA device."""
    free = [machine_memory()]
    for line in text_of("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free.append(int(line.split()[1]) * 1024)
    for limit, taken in GROUPS:
        if (most := text_of(limit).strip()).isdecimal() and (used := text_of(taken).strip()).isdecimal():
            free.append(max(int(most) - int(used), 0))
    if str(device).startswith("cuda"):
        import torch

        free.append(torch.cuda.mem_get_info()[0])
    return min(free)


def allowed(gigabytes: float | None, device: str = "cpu") -> tuple[float, str]:
    """Return how many bytes of pictures may be kept, and the words that say why: --memory, or a share of what is free."""
    if gigabytes is not None:
        return gigabytes * 1e9, f"--memory {gigabytes:g}"
    return SHARE * free_memory(device), f"{SHARE:.0%} of the memory that is free, {free_memory(device) / 1e9:.3g} GB"


def text_of(path: str) -> str:
    """Return what a file of the system says; empty where there is none."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""
