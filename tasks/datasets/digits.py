"""This file reads the handwritten digits that scikit-learn comes with, so that nothing is downloaded."""

import numpy as np
import torch
import torch.nn.functional as F

from tasks.images import Images, Source


class Digits(Source):
    """The 1,797 handwritten digits inside scikit-learn (Alpaydin and Kaynak, 1998), 8x8 pixels, enlarged to 32x32."""

    # a mirrored digit is no digit
    augment = "crop"

    def class_count(self) -> int:
        return 10

    def read(self) -> tuple[Images, Images, list[str]]:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        small = torch.from_numpy(bunch.images).float().unsqueeze(1) * (255 / 16)
        large = F.interpolate(small, size=32, mode="bilinear", align_corners=False).round().clamp(0, 255).byte()
        every = Images(large.permute(0, 2, 3, 1).expand(-1, -1, -1, 3), torch.from_numpy(bunch.target).long())
        order = torch.from_numpy(np.random.RandomState(0).permutation(len(every)))
        return every.pick(order[:1437]), every.pick(order[1437:]), [str(digit) for digit in range(10)]
