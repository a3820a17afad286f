"""This file makes the form in 8 bits."""

from typing import Annotated, Literal

from deploy import quantised
from deploy.int8_file import Int8Form, sums_exactly
from models import Network
from tasks import Task


def int8(
    network: Network,
    task: Task,
    *,
    calibrate: Annotated[int, "at least 1"] = 10,
    weight_bits: Literal[0, 7, 8] = 0,
    train: bool = False,
    batches: Annotated[int, "at least 1", "needs train=True"] = 400,
    lr: Annotated[float, "above 0", "needs train=True"] = 1e-4,
    delay: Annotated[float, "at most 1", "needs train=True"] = 0.25,
) -> Annotated[Int8Form, "an .onnx file"]:
    """Weights and activations in 8 bits, an .onnx file that onnxruntime computes on integers (Jacob et al., 2018)

    arXiv 1712.05877. Batch norm is folded; ranges of activations hold what is seen in `calibrate` batches of training
    images, not augmented. With `train` the folded weights are then trained for so many `batches` at learning rate `lr`
    with rounding in the forward pass, and ranges become moving averages; activations are rounded behind the first `delay`
    of them. Weights of 7 bits are for x86 processors without VNNI, which add up two products of 8 bits in 16 and saturate;
    with 0 there are 8 where this processor adds them up exactly, and 7 otherwise.
    """
    weight_bits = weight_bits or (8 if sums_exactly() else 7)
    form = quantised.quantised(network, 2 ** (weight_bits - 1) - 1)
    quantised.calibrate(form, task.sample(calibrate))
    if train:
        quantised.train(form, task, batches, lr, delay)
    return Int8Form(form, weight_bits)
