"""This file defines VGG with batch norm for 32x32 images (Simonyan and Zisserman, 2015, arXiv 1409.1556).

The head is a linear layer of 512 with batch norm, behind which there may be dropout, then the classifier. With `widen`
layers have so many times as many filters.
"""

from typing import Annotated

from torch import Tensor, nn

from models.layers import Unit, conv_unit, initialise
from models.network import Network
from models.pooling import Halve
from models.shapes import widened

_WIDTHS = (64, 128, 256, 512, 512)


class _VGG(Network):
    def __init__(self, repeats: tuple, classes: int, channels: int, dropout: float, widen: float):
        super().__init__()
        self.features = nn.Sequential()
        inputs, source = channels, "input"
        for width, convolutions in zip([widened(filters, widen) for filters in _WIDTHS], repeats, strict=True):
            for _ in range(convolutions):
                path = f"features.{len(self.features)}"
                self.features.append(conv_unit(inputs, width, 3))
                self.wire(path, source, path)
                inputs, source = width, path
            self.features.append(Halve())
        self.hidden = Unit(nn.Linear(inputs, inputs), dropout=dropout)
        self.classifier = Unit(nn.Linear(inputs, classes), norm=False, activation=False)
        self.wire("hidden", source, "hidden")
        self.wire("classifier", "hidden", "output")
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        # 32x32 images arrive here as one pixel; larger ones are averaged
        return self.classifier(self.hidden(self.features(x).mean((2, 3))))


def vgg16(
    *,
    classes: int = 10,
    channels: int = 3,
    dropout: Annotated[float, "below 1"] = 0.0,
    widen: Annotated[float, "above 0", "at most 16"] = 1.0,
) -> Network:
    """VGG-16 with batch norm and a 512-BN head for 32x32 images (Simonyan and Zisserman, 2015)"""
    return _VGG((2, 2, 3, 3, 3), classes, channels, dropout, widen)


def vgg19(
    *,
    classes: int = 10,
    channels: int = 3,
    dropout: Annotated[float, "below 1"] = 0.0,
    widen: Annotated[float, "above 0", "at most 16"] = 1.0,
) -> Network:
    """VGG-19 with batch norm and a 512-BN head for 32x32 images (Simonyan and Zisserman, 2015)"""
    return _VGG((2, 2, 4, 4, 4), classes, channels, dropout, widen)
