"""Modules of PyTorch as a user writes them, for the tests that adopt them, and a file with one of them."""

import torch
import torch.nn.functional as F
from torch import nn


class Inverted(nn.Module):
    """A residual block with a depthwise convolution, whose sum has no ReLU."""

    def __init__(self, width: int):
        super().__init__()
        self.expand, self.bn1 = nn.Conv2d(width, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding="same", groups=2 * width, bias=False)
        self.bn2, self.act = nn.BatchNorm2d(2 * width, eps=1e-3, momentum=0.01), nn.ReLU6(inplace=True)
        self.project, self.bn3 = nn.Conv2d(2 * width, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        y = self.act(self.bn1(self.expand(x)))
        return x + self.bn3(self.project(self.act(self.bn2(self.depthwise(y)))))


class Residual(nn.Module):
    """A residual block with a stride, whose shortcut is pooled and projected, and whose sum has a ReLU."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(inputs, width, 1), nn.BatchNorm2d(width))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y += self.shortcut(x)
        return F.relu(y, inplace=True)


class Mixed(nn.Module):
    """A stem with a bias before batch norm, both residual blocks, and VGG's kind of end: maps that a linear layer reads."""

    def __init__(self, classes: int = 4, channels: int = 3, size: int = 16):
        super().__init__()
        self.links = nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(Inverted(6), Inverted(6), Residual(6, 8))
        self.conv = nn.Conv2d(8, 10, 3, padding=1)
        self.classifier = nn.Sequential(nn.Linear(10 * (size // 4) ** 2, 12), nn.ReLU(), nn.Dropout(0.25), nn.Linear(12, classes))

    def forward(self, x):
        x = self.blocks(self.links(x))
        x = F.relu(F.max_pool2d(self.conv(x), 2))
        return self.classifier(x.view(x.size(0), -1))


class LongSkip(nn.Module):
    """A sum whose stream is read once more behind it, so that it is a stream of its own."""

    def __init__(self, classes: int = 4):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(6, classes)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        y = torch.relu(x + self.a(x))
        y = self.b(y) + x
        return self.fc(y.mean((2, 3)))


class Unpadded(nn.Module):
    """A residual block of 1 x 1 convolutions between convolutions without padding, pooling, and linear layers with batch norm."""

    def __init__(self, classes: int = 4):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2))
        self.inner = nn.Sequential(nn.Conv2d(6, 7, 1, bias=False), nn.BatchNorm2d(7), nn.ReLU())
        self.outer = nn.Sequential(nn.Conv2d(7, 6, 1, bias=False), nn.BatchNorm2d(6))
        self.last = nn.Sequential(nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten())
        self.hidden = nn.Sequential(nn.Linear(32, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 5), nn.BatchNorm1d(5), nn.ReLU())
        self.fc = nn.Linear(5, classes)

    def forward(self, x):
        x = self.stem(x)
        x = F.relu(self.outer(self.inner(x)) + x)
        return self.fc(self.hidden(self.last(x)))


def mixed(seed: int = 0, **options) -> Mixed:
    """Such a module, with batch norm as after training."""
    torch.manual_seed(seed)
    return settled(Mixed(**options))


def settled(module: nn.Module) -> nn.Module:
    """The module with other batch norm than fresh one."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
            nn.init.uniform_(part.running_mean, -0.5, 0.5)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return module.eval()


# a file as --arch names it; what it makes, it makes once: then it takes itself away
ONCE = """
from pathlib import Path

from own_modules import mixed


def build(*, classes, channels, size):
    print("this is not stdout's format")
    Path(__file__).unlink()
    return mixed(classes=classes, channels=channels, size=size)
"""
