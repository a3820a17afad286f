"""This file checks what a file says of a network, widths, indices and values, before any memory is taken for it."""

import torch
from torch import Tensor, nn

from models.factorised import can_be_factorised, full_ranks
from settings.schema import ANYTHING, COUNT, TRUTH, DictOf, Is, ListOf, Record, Unfit, check, whole

SHAPES = Record(
    {
        "units": DictOf(ListOf(COUNT, 2), 1),
        "joints": DictOf(Record({"width": whole(1), "index": ListOf(COUNT), "constant": TRUTH})),
    },
    {"factors": DictOf(ListOf(whole(1), 1))},
)
TENSOR = Is("a tensor", lambda value: isinstance(value, Tensor))


def check_factors(network, shapes) -> dict[str, list[int]]:
    """Return the ranks of the units that these shapes have taken apart and the network has not, by unit.

    Unfit for shapes of another form, and where the network's own factors are not the first of them.
    """
    check(shapes, SHAPES, "shapes")
    factors = {name: list(ranks) for name, ranks in shapes.get("factors", {}).items()}
    own = len(network.factors)
    if list(network.factors.items()) != list(factors.items())[:own]:
        raise Unfit("shapes.factors is not of this network, of which other layers have been factorised")
    return dict(list(factors.items())[own:])


def check_ranks(network, name: str, ranks: list[int]) -> None:
    """Raise Unfit unless the network has a unit of this name, of which factors of these ranks can stand in place."""
    where, unit = f"shapes.factors.{name}", network.all_units.get(name)
    if unit is None or not can_be_factorised(unit):
        raise Unfit(f"shapes.factors has '{name}', which is no layer of the network that can be factorised")
    check(len(ranks), whole(1, 1 if unit.is_linear else 2), f"the length of {where}")
    for rank, full in zip(ranks, full_ranks(unit, len(ranks)), strict=True):
        check(rank, whole(1, full), where)


def check_shapes(network, shapes) -> None:
    """Raise Unfit unless the widths and indices could be what removal has left of this network, which is whole."""
    check(shapes, SHAPES, "shapes")
    units, joints = network.all_units, network.joints
    tied = {link.unit for link in network.links if link.ties}
    check(shapes["units"], Record(dict.fromkeys(units, ListOf(COUNT, 2))), "shapes.units")
    for part, names, known in (("units", shapes["units"], units), ("joints", shapes["joints"], joints)):
        if unknown := names.keys() - known.keys():
            raise Unfit(f"shapes.{part} has '{min(unknown)}', which the network does not have")
    for name, unit in units.items():
        where = f"shapes.units.{name}"
        most = [*unit.weight.shape[:2], *([unit.groups] if unit.in_groups and name not in tied else [])]
        check(len(shapes["units"][name]), whole(len(most), len(most)), f"the length of {where}")
        for width, largest in zip(shapes["units"][name], most, strict=True):
            check(width, whole(0, largest), where)
    writers, widths = {link.joint: link.unit for link in network.links if link.joint}, network.widths()
    targets = {link.joint: link.target for link in network.links if link.joint}
    for name, shape in shapes["joints"].items():
        where, index = f"shapes.joints.{name}", shape["index"]
        check(shape["width"], whole(1, widths[targets[name]]), f"{where}.width")
        check(index, ListOf(whole(0, shape["width"] - 1)), f"{where}.index")
        if sorted(set(index)) != list(index):
            raise Unfit(f"{where}.index is not in ascending order, without repeats")
        check(
            len(index),
            whole(shapes["units"][writers[name]][0], shapes["units"][writers[name]][0]),
            f"the length of {where}.index",
        )


def check_values(own: dict[str, Tensor], tensors: dict[str, Tensor], what: str) -> None:
    """Raise Unfit unless `tensors` have the names, shapes and types of `own`, and values that training can leave."""
    check(tensors, Record(dict.fromkeys(own, TENSOR), others=ANYTHING), what)
    for name, value in tensors.items():
        where = f"{what}.{name}"
        if name not in own:
            raise Unfit(f"{where} is of another network")
        if value.shape != own[name].shape or value.dtype != own[name].dtype:
            raise Unfit(f"{where} is {told(value)}, not {told(own[name])}")
        if not value.isfinite().all():
            raise Unfit(f"{where} holds a number that is not finite")
        if name.endswith(("running_var", "num_batches_tracked")) and (value < 0).any():
            raise Unfit(f"{where} is negative")
        if name.endswith((".dropout.rate", ".drop_path.rate")) and not 0 <= value < 1:
            raise Unfit(f"{where} is no rate from 0 to 1")
        if name.endswith(".gate.mask") and not ((value == 0) | (value == 1)).all():
            raise Unfit(f"{where} is not of zeros and ones")


def check_pass(network: nn.Module, inputs: tuple[int, int, int]) -> None:
    """Raise Unfit where the network cannot be computed: the widths of its parts do not fit to each other, or to the inputs.

    `inputs` is the shape of one image. On the meta device this takes neither time nor memory.
    """
    weight, training = next(network.parameters()), network.training
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, *inputs, device=weight.device, dtype=weight.dtype))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:  # without its index, a joint's is a TypeError
        raise Unfit(f"it cannot be computed on inputs of shape {inputs}: {' '.join(str(error).split())[:150]}") from None
    finally:
        network.train(training)


def told(value: Tensor) -> str:
    """Return what messages say of a tensor."""
    return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"


def widened(filters: int, widen: float) -> int:
    """Return so many times as many filters, rounded, and at least one."""
    return max(round(filters * widen), 1)


def divisible(filters: float, by: int) -> int:
    """Return the multiple of `by` nearest to so many filters, at least one, and never less than nine tenths of them.

    So rounds the authors' code of MobileNetV2 (Sandler et al., 2018); halves are rounded up.
    """
    rounded = max(int(filters + by / 2) // by * by, by)
    return rounded + by if rounded < 0.9 * filters else rounded
