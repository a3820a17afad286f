"""This file makes the form of Deep Compression (Han, Mao and Dally, 2016, arXiv 1510.00149): shared weights in few bits.

The first of its three steps, pruning, is the run's own. Here the weights that are left share the values of a codebook for
each layer, the codebooks are trained, and the file holds Huffman codes.
"""

from typing import Literal

import torch
from torch.func import functional_call

from deploy.forms.form import CodedForm
from deploy.sharing import shared
from models import Network
from models.coding import encode
from settings.errors import Failed
from tasks import Task


def deep_compression(
    network: Network,
    task: Task,
    *,
    conv_bits: Literal[1, 2, 3, 4, 5, 6, 7, 8] = 8,
    linear_bits: Literal[1, 2, 3, 4, 5, 6, 7, 8] = 5,
    index_bits: Literal[1, 2, 3, 4, 5, 6, 7, 8] = 5,
    batches: int = 100,
    lr: float = 1e-4,
) -> CodedForm:
    """Prune, share, Huffman: a file in which each weight is a few bits (Han, Mao and Dally, 2016).

    In each layer k-means finds at most 2^bits - 1 values for the weights that are not 0; number 0 stands for the zeros that
    fill gaps beyond 2^index_bits. The values are then trained by plain gradient descent at learning rate `lr` on so many
    training `batches`, with the gradients of all weights that share one added up; batch norm keeps its statistics. The
    network is changed in place. Failed where that ends in values that are not finite.
    """
    numbers, codebooks = {}, {}
    for name, unit in network.all_units.items():
        weight = unit.layer.weight.detach()
        most = 2 ** (linear_bits if unit.is_linear else conv_bits) - 1
        numbers[f"{name}.layer.weight"], codebooks[f"{name}.layer.weight"] = shared(weight, most)
    _train(network, task, batches, numbers, codebooks, lr)
    if not all(codebook.isfinite().all() for codebook in codebooks.values()):
        raise Failed(f"--form deep_compression: trained at lr={lr:g} the shared values are not finite: choose a smaller one")
    coded = {name: encode(numbers[name], codebooks[name], index_bits) for name in numbers}
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name in numbers:
                weight.copy_(codebooks[name][numbers[name]])
    return CodedForm(network, coded)


def _train(network: Network, task: Task, batches: int, numbers: dict, codebooks: dict, lr: float) -> None:
    """Train the codebooks in place: C_k <- C_k - lr * the sum of the gradients of the weights that share C_k."""
    network.eval()
    zero = {name: codebook[:1] for name, codebook in codebooks.items()}
    for inputs, targets in task.sample(batches):
        values = {name: codebook[1:].detach().requires_grad_(True) for name, codebook in codebooks.items()}
        weights = {name: torch.cat([zero[name], values[name]])[numbers[name]] for name in numbers}
        loss = sum(task.losses(functional_call(network, weights, (inputs,)), targets).values())
        # a branch of which nothing is left is passed over, and its values have no gradient
        gradients = torch.autograd.grad(loss, list(values.values()), materialize_grads=True)
        for name, gradient in zip(values, gradients, strict=True):
            codebooks[name][1:] -= lr * gradient
