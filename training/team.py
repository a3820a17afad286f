"""This file lets several processes, started by `torchrun`, train one network with a device each."""

import os
import sys
import warnings

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models import Network


def launched() -> bool:
    """Whether this process is one of several, by the variables that torchrun sets."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1


class Team:
    """A team is the processes of a run. In a team of one, every method does nothing.

    Each process takes its part of every batch; gradients are averaged over the team (DistributedDataParallel). Only the
    first process, which leads, writes files and lines.
    """

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0):
        self.rank, self.size, self.local = rank, size, local

    @classmethod
    def join(cls, device: str) -> "Team":
        """Wait for the other processes, and take a device of this kind, such as cuda:1; a team of one if none was launched."""
        if not launched():
            return cls()
        team = cls(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", 0)))
        if device == "cuda":
            torch.cuda.set_device(team.local)
        # values that are not on a device travel by gloo
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
        if not team.leads:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (for as long as the process lives)
        team.every(None)  # before all are there the end of the first one, which the others find each other by, breaks them
        return team

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def leave(self) -> None:
        if self.size > 1:
            dist.destroy_process_group()

    def wrap(self, network: nn.Module) -> nn.Module:
        """Wrap the network for the training pass: gradients are averaged over the team, batch norm's statistics are not."""
        if self.size == 1:
            return network
        # a tensor that removal has emptied gets no gradient, which the others would wait for
        empty = [name for name, parameter in network.named_parameters() if parameter.numel() == 0]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(network, empty)
        # a 1x1 convolution's gradient may have either of two strides, which mean the same memory
        warnings.filterwarnings("ignore", "Grad strides do not match")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the flag has a new name in torch 2.14, and the old one before
            return DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)

    def share(self, value):
        """Give all processes the first one's value, made of plain values and tensors."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def every(self, value) -> list:
        """Return the values of all processes, made of plain values and tensors, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def same_(self, tensors: list[Tensor]) -> None:
        """Overwrite these tensors with those of the first process."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)  # of a parameter, or autograd would go back through it

    def sum_(self, tensor: Tensor) -> None:
        """Overwrite a tensor with its sum over the team."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def largest_(self, tensor: Tensor) -> None:
        """Overwrite a tensor with its largest values over the team."""
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
