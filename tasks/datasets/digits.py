"""This file reads the handwritten digits that scikit-learn comes with, so that nothing is downloaded."""

import numpy as np
import torch

from tasks.images import Images, Source, scaled


class Digits(Source):
    """The 1,797 handwritten digits inside scikit-learn (Alpaydin and Kaynak, 1998), 8x8 pixels, enlarged."""

    # a mirrored digit is no digit
    augment = "crop"

    def __init__(self, *, image_size: int = 32, channels: int = 3):
        super().__init__((channels, image_size, image_size))

    def class_count(self) -> int:
        return 10

    def read(self) -> tuple[Images, Images, list[str]]:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        pixels = scaled(torch.from_numpy(bunch.images).float() * (255 / 16), self.inputs)
        every = Images(pixels, torch.from_numpy(bunch.target).long())
        order = torch.from_numpy(np.random.RandomState(0).permutation(len(every)))
        return every.pick(order[:1437]), every.pick(order[1437:]), [str(digit) for digit in range(10)]
