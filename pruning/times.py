"""This file holds the times of a run at which something is due: computed when asked for, not kept, since they may be many."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence


class Due(Sequence):
    """The positions at which --prune_freq comes round in a run of so many `epochs` of `steps`, in rising order.

    That is before the first step of every `every`-th epoch or, not `by_epochs`, before the last of every `every` steps of an
    epoch.
    """

    def __init__(self, epochs: int, steps: int, every: int, by_epochs: bool):
        self.steps, self.every, self.by_epochs = steps, every, by_epochs
        self.in_epoch = steps // every
        self.number = -(-epochs // every) if by_epochs else epochs * self.in_epoch

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self.number:
            raise IndexError(index)
        if self.by_epochs:
            return index * self.every * self.steps
        epoch, time = divmod(index, self.in_epoch)
        return epoch * self.steps + (time + 1) * self.every - 1


class Mapped(Sequence):
    """A function of each item of a sequence."""

    def __init__(self, items: Sequence, function: Callable):
        self.items, self.function = items, function

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.function(self.items[index])


def numbers(rising: Sequence, item) -> range:
    """Return the places at which a sequence in rising order holds an item, without going through it."""
    return range(bisect_left(rising, item), bisect_right(rising, item))
