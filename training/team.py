"""Several processes that train one network, a device each, as `torchrun` starts them."""

import os
import sys
import warnings

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models import Network


def launched() -> bool:
    """Whether torchrun, or what sets the same variables, started this process among others."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1


class Team:
    """The processes of a run. With one, everything here does nothing.

    Each takes its part of every batch; gradients are their mean (DistributedDataParallel). Only the first writes files
    and lines.
    """

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0):
        self.rank, self.size, self.local = rank, size, local

    @classmethod
    def join(cls, device: str) -> "Team":
        """Meet the others on this kind of device; here it becomes the process's own, cuda:N. Alone where none launched us."""
        if not launched():
            return cls()
        team = cls(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", 0)))
        if device == "cuda":
            torch.cuda.set_device(team.local)
        # values that are not on a device travel by gloo
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
        if not team.leads:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (for as long as the process lives)
        return team

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def leave(self) -> None:
        if self.size > 1:
            dist.destroy_process_group()

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network for the training pass, its gradients averaged over the team; batch norm's statistics stay apart."""
        if self.size == 1:
            return network
        # what removal has emptied has no gradient to wait for
        empty = [name for name, parameter in network.named_parameters() if parameter.numel() == 0]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(network, empty)
        # a 1x1 convolution's gradient may be laid out in two ways that are one in memory
        warnings.filterwarnings("ignore", "Grad strides do not match")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the flag has a new name in torch 2.14, and the old one before
            return DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)

    def share(self, value):
        """The first one's plain values and tensors, for all."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def same_(self, tensors: list[Tensor]) -> None:
        """The first one's tensors, in place of everybody's."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def sum_(self, tensor: Tensor) -> None:
        """The sum over all, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def largest_(self, tensor: Tensor) -> None:
        """The largest of all, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)

    @torch.no_grad()
    def average_statistics(self, network: Network) -> None:
        """Average batch norm's running statistics, since each process has seen its own part of the batches.

        No other buffer is touched: masks are the same everywhere, and size * (1 / size) is not always 1 in float32.
        """
        if self.size > 1:
            for unit in network.all_units.values():
                if unit.norm is not None:
                    for statistic in (unit.norm.running_mean, unit.norm.running_var):
                        self.sum_(statistic.div_(self.size))
