"""This file defines VGG (Simonyan and Zisserman, 2015, arXiv 1409.1556), with three heads behind the same convolutions.

With head='cifar', for 32x32 images, it is a linear layer of 512 with batch norm, behind which there may be dropout, then the
classifier. head='linear' is the classifier alone. head='imagenet' is the paper's: two linear layers of 4096 and the classifier
on a map of 7x7 pixels, with dropout behind the first two; maps of other sizes are averaged to that one, as in torchvision's
networks, whose parameters these have: their convolutions have biases, and with norm=False no batch norm. With `widen` all
layers but the classifier have so many times as many filters.
"""

from typing import Annotated, Literal

from torch import Tensor, nn

from models.layers import Unit, conv_unit, initialise
from models.network import Network
from models.parts import WholeMap
from models.pooling import Averaged, Halve
from models.shapes import widened

_WIDTHS = (64, 128, 256, 512, 512)
# of the paper's head: the pixels of a side of the map that it reads, and the neurons of a hidden layer
_SIDE, _HIDDEN = 7, 4096


class _VGG(Network):
    def __init__(self, repeats: tuple, head: str, norm: bool, classes: int, channels: int, dropout: float, widen: float):
        super().__init__()
        self.features, self.head = nn.Sequential(), head
        inputs, source = channels, "input"
        for width, convolutions in zip([widened(filters, widen) for filters in _WIDTHS], repeats, strict=True):
            for _ in range(convolutions):
                path = f"features.{len(self.features)}"
                biased = Unit(nn.Conv2d(inputs, width, 3, padding=1), norm) if head == "imagenet" else None
                self.features.append(biased or conv_unit(inputs, width, 3))
                self.wire(path, source, path)
                inputs, source = width, path
            self.features.append(Halve())
        if head == "imagenet":
            hidden = widened(_HIDDEN, widen)
            self.averaged = Averaged(_SIDE)
            self.hidden1 = Unit(WholeMap(inputs, hidden, _SIDE), norm=False, dropout=dropout)
            self.hidden2 = Unit(nn.Linear(hidden, hidden), norm=False, dropout=dropout)
            self.wire("hidden1", source, "hidden1")
            self.wire("hidden2", "hidden1", "hidden2")
            inputs, source = hidden, "hidden2"
        elif head == "cifar":
            self.hidden = Unit(nn.Linear(inputs, inputs), dropout=dropout)
            self.wire("hidden", source, "hidden")
            source = "hidden"
        drops = {"dropout": dropout, "drops_inputs": True} if head == "linear" else {}
        self.classifier = Unit(nn.Linear(inputs, classes), norm=False, activation=False, **drops)
        self.wire("classifier", source, "output")
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        if self.head == "imagenet":
            return self.classifier(self.hidden2(self.hidden1(self.averaged(x)).flatten(1)))
        x = x.mean((2, 3))  # 32x32 images arrive here as one pixel; larger ones are averaged
        return self.classifier(self.hidden(x) if self.head == "cifar" else x)


def vgg16(
    *,
    head: Literal["cifar", "linear", "imagenet"] = "cifar",
    norm: Annotated[bool, "needs head='imagenet'"] = True,
    classes: int = 10,
    channels: int = 3,
    dropout: Annotated[float, "below 1"] = 0.0,
    widen: Annotated[float, "above 0", "at most 16"] = 1.0,
) -> Network:
    """VGG-16 with batch norm and a 512-BN head for 32x32 images, or the paper's head (Simonyan and Zisserman, 2015)"""
    return _VGG((2, 2, 3, 3, 3), head, norm, classes, channels, dropout, widen)


def vgg19(
    *,
    head: Literal["cifar", "linear", "imagenet"] = "cifar",
    norm: Annotated[bool, "needs head='imagenet'"] = True,
    classes: int = 10,
    channels: int = 3,
    dropout: Annotated[float, "below 1"] = 0.0,
    widen: Annotated[float, "above 0", "at most 16"] = 1.0,
) -> Network:
    """VGG-19 with batch norm and a 512-BN head for 32x32 images, or the paper's head (Simonyan and Zisserman, 2015)"""
    return _VGG((2, 2, 4, 4, 4), head, norm, classes, channels, dropout, widen)
