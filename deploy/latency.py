"""This file measures how long a network takes and how much memory it holds, the whole and the smaller one in turns."""

import statistics
import time
import weakref
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from deploy.folding import folded
from models import Network

WARM_UP, FEWEST, MOST, ENOUGH_SECONDS = 3, 5, 50, 4.0


def in_turns(
    runs: dict[str, Callable[[], object]], wait: Callable[[], object] = lambda: None, fewest: int = FEWEST
) -> dict[str, list[float]]:
    """The seconds of each run in each round; runs take turns, so that what else the machine does meets all of them alike.

    After a warm-up there are between `fewest` and 50 rounds, fewer than 50 once 4 s have passed; `wait` ends asynchronous
    work.
    """
    took, began = {name: [] for name in runs}, None
    for number in range(WARM_UP + MOST):
        if number == WARM_UP:
            began = time.perf_counter()
        elif began and number >= WARM_UP + fewest and time.perf_counter() - began > ENOUGH_SECONDS:
            break
        for name, run in runs.items():
            wait()
            start = time.perf_counter()
            run()
            wait()
            if began:
                took[name].append(time.perf_counter() - start)
    return took


def alternate(runs: dict[str, Callable[[], object]], wait: Callable[[], object] = lambda: None, fewest: int = FEWEST) -> dict:
    """The median seconds of each run, measured as `in_turns` does."""
    return {name: statistics.median(seconds) for name, seconds in in_turns(runs, wait, fewest).items()}


def summed_up(seconds: list[float]) -> dict:
    """What is kept of a network's rounds: their number, the median, and the quartiles, between which the middle half is."""
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else 3 * seconds
    return {"ms": 1e3 * statistics.median(seconds), "middle_ms": [1e3 * low, 1e3 * high], "rounds": len(seconds)}


def networks(whole: Network, smaller: Network, image_size: int, batch: int, device: str) -> dict[str, dict]:
    """What one batch costs "dense" and "compact", in float32 with batch norm folded: `summed_up`, and peak memory in MB."""
    forms = {"dense": folded(whole), "compact": folded(smaller)}
    images = torch.zeros(batch, whole.input_channels, image_size, image_size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    wait = getattr(torch, device).synchronize if device != "cpu" else lambda: None
    with torch.inference_mode():
        took = in_turns({name: _pass(network, images) for name, network in forms.items()}, wait)
        return {name: summed_up(took[name]) | {"peak_mb": peak_memory(network, images) / 1e6} for name, network in forms.items()}


def _pass(network: Network, images: torch.Tensor) -> Callable[[], object]:
    """Return a function that does the forward pass; on CUDA it replays a graph, so that no launch by the host is timed."""
    if not images.is_cuda:
        return lambda: network(images)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            network(images)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        network(images)
    return graph.replay


def peak_memory(network: Network, images: torch.Tensor) -> int:
    """Return the bytes of all tensors that are alive at the worst moment of a pass: weights, images, intermediate maps.

    On CUDA the allocator tells its peak; elsewhere tensors are counted, without the memory that a kernel takes for itself.
    """
    if images.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        network(images)
        # the rest of the process has tensors too, which do not count
        held = {value.untyped_storage() for value in (*network.parameters(), *network.buffers(), images)}
        before = torch.cuda.memory_allocated()
        return torch.cuda.max_memory_allocated() - before + sum(storage.nbytes() for storage in held)
    with _Tensors() as tensors:
        for value in (*network.parameters(), *network.buffers(), images):
            tensors.see(value)
        network(images)
    return tensors.peak


class _Tensors(TorchDispatchMode):
    """A dispatch mode that counts the bytes of the storages that are alive."""

    def __init__(self):
        super().__init__()
        self.alive = self.peak = 0
        self.known = weakref.WeakSet()

    def see(self, value) -> None:
        if not isinstance(value, torch.Tensor):
            return
        storage = value.untyped_storage()
        if storage not in self.known:
            self.known.add(storage)
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._gone, storage.nbytes())

    def _gone(self, size: int) -> None:
        self.alive -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            self.see(value)
        return out
