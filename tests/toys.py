"""Small networks that are wired in ways that the published ones of models/ are not."""

import torch
from torch import nn

from models import Joint, Network, Unit
from models.layers import conv_unit, initialise
from tasks.classification import Classification


class Separable(Network):
    """Depthwise-separable blocks: behind a unit of their own, and, the last one, behind a residual stream."""

    def __init__(self, channels: int = 3, classes: int = 4):
        super().__init__()
        self.stem, self.depth1 = conv_unit(channels, 6, 3), conv_unit(6, 6, 3, groups=6)
        self.point1 = conv_unit(6, 8, 1)
        self.expand, self.depth2 = conv_unit(8, 10, 1), conv_unit(10, 10, 3, groups=10, dilation=2)
        self.project, self.joint = conv_unit(10, 8, 1, activation=False), Joint()
        self.depth3 = conv_unit(8, 8, 3, stride=2, groups=8)
        self.classifier = Unit(nn.Linear(8, classes), norm=False, activation=False)
        self.wire("stem", "input", "stem")
        self.wire("depth1", "stem", "depth1", ties="channel")
        self.wire("point1", "depth1", "stream")
        self.wire("expand", "stream", "expand")
        self.wire("depth2", "expand", "depth2", ties="channel")
        self.wire("project", "depth2", "stream", "joint")
        self.wire("depth3", "stream", "depth3", ties="channel")
        self.wire("classifier", "depth3", "output")
        initialise(self)

    def forward(self, x):
        x = self.point1(self.depth1(self.stem(x)))
        x = self.joint(self.project(self.depth2(self.expand(x))), x)
        return self.classifier(self.depth3(x).mean((2, 3)))


class Inverted(Separable):
    """The same without a depthwise convolution behind the stream, whose writers so may be cut one by one."""

    def __init__(self):
        super().__init__()
        self.links = [link for link in self.links if link.unit != "depth3"]
        self.links[-1] = type(self.links[-1])("classifier", "stream", "output")
        del self.depth3

    def forward(self, x):
        x = self.point1(self.depth1(self.stem(x)))
        x = self.joint(self.project(self.depth2(self.expand(x))), x)
        return self.classifier(x.mean((2, 3)))


class Dilated(Network):
    """Convolutions whose kernels have gaps, the second one with a stride and without padding."""

    def __init__(self, classes: int = 4):
        super().__init__()
        self.stem = conv_unit(3, 6, 3, dilation=2)
        self.wide = Unit(nn.Conv2d(6, 7, (3, 2), stride=2, padding=(0, 1), dilation=(3, 2)))
        self.last = conv_unit(7, 5, 1)
        self.classifier = Unit(nn.Linear(5, classes), norm=False, activation=False)
        for name, source, target in (
            ("stem", "input", "stem"), ("wide", "stem", "wide"), ("last", "wide", "last"), ("classifier", "last", "output")
        ):  # fmt: skip
            self.wire(name, source, target)
        initialise(self)

    def forward(self, x):
        return self.classifier(self.last(self.wide(self.stem(x))).mean((2, 3)))


class TwoHeads(Network):
    """A detector's shape: a learned scale of each channel, and two convolutions that are outputs, at two sizes.

    The first stage is copied into the second one without parameters, and a head reads it after that.
    """

    outputs = ("boxes", "scores")

    def __init__(self):
        super().__init__()
        self.stem, self.scale = conv_unit(3, 6, 3), Unit(nn.Conv2d(6, 6, 1, groups=6, bias=False), norm=False, activation=False)
        self.deep1, self.deep2, self.joint = conv_unit(6, 7, 3), conv_unit(7, 9, 3, activation=False), Joint()
        self.boxes = Unit(nn.Conv2d(6, 4, 3, padding=1), norm=False, activation=False)
        self.scores = Unit(nn.Conv2d(9, 5, 3, padding=1), norm=False, activation=False)
        self.wire("stem", "input", "stage1")
        self.wire("deep1", "stage1", "deep1")
        self.wire(None, "stage1", "stage2")
        self.wire("deep2", "deep1", "stage2", "joint")
        self.wire("scale", "stage1", "scale", ties="channel")
        self.wire("boxes", "scale", "boxes")
        self.wire("scores", "stage2", "scores")
        initialise(self)

    def forward(self, x):
        x = self.stem(x)
        y = self.joint(self.deep2(self.deep1(x)), x)
        return self.boxes(self.scale(x)), self.scores(y)


class Bottleneck(nn.Module):
    """Narrow, convolve, widen by four, and add; with a projection where the stream changes its width or size."""

    def __init__(self, network: Network, name: str, source: str, target: str, inputs: int, inner: int, stride: int):
        super().__init__()
        network.add_module(name, self)
        self.narrow, self.inner = conv_unit(inputs, inner, 1), conv_unit(inner, inner, 3, stride=stride)
        self.widen, self.joint = conv_unit(inner, 4 * inner, 1, activation=False), Joint()
        self.projection = None if source == target else conv_unit(inputs, 4 * inner, 1, stride=stride, activation=False)
        network.wire(f"{name}.narrow", source, f"{name}.narrow")
        network.wire(f"{name}.inner", f"{name}.narrow", f"{name}.inner")
        if self.projection is not None:
            network.wire(f"{name}.projection", source, target)
        network.wire(f"{name}.widen", f"{name}.inner", target, f"{name}.joint")

    def forward(self, x):
        stream = x if self.projection is None else self.projection(x)
        return self.joint(self.widen(self.inner(self.narrow(x))), stream)


class Bottlenecks(Network):
    """ResNet-50's kind of network, of five blocks: two in the first stage, one in each of the others."""

    def __init__(self, classes: int = 4):
        super().__init__()
        self.stem = conv_unit(3, 16, 3)
        self.wire("stem", "input", "stem")
        inputs, source = 16, "stem"
        for number, (stage, inner) in enumerate((("stage1", 8), ("stage1", 8), ("stage2", 16), ("stage3", 32), ("stage4", 64))):
            Bottleneck(self, f"block{number}", source, stage, inputs, inner, 1 if stage == "stage1" else 2)
            inputs, source = 4 * inner, stage
        self.classifier = Unit(nn.Linear(inputs, classes), norm=False, activation=False)
        self.wire("classifier", source, "output")
        initialise(self)

    def forward(self, x):
        x = self.stem(x)
        for number in range(5):
            x = self.get_submodule(f"block{number}")(x)
        return self.classifier(x.mean((2, 3)))


class InGroups(Network):
    """A convolution in two groups, as in ResNeXt."""

    def __init__(self):
        super().__init__()
        self.stem, self.grouped = conv_unit(3, 6, 3), conv_unit(6, 8, 3, groups=2)
        self.classifier = Unit(nn.Linear(8, 4), norm=False, activation=False)
        self.wire("stem", "input", "stem")
        self.wire("grouped", "stem", "grouped")
        self.wire("classifier", "grouped", "output")
        initialise(self)

    def forward(self, x):
        return self.classifier(self.grouped(self.stem(x)).mean((2, 3)))


TOYS = {
    "depthwise": Separable,
    "depthwise, gray": lambda: Separable(channels=1),
    "inverted": Inverted,
    "dilated": Dilated,
    "two outputs": TwoHeads,
}


def toy(name: str, seed: int = 0) -> Network:
    """One of them in float64, in evaluation mode, with batch norm's parameters and statistics away from their defaults."""
    torch.manual_seed(seed)
    network = TOYS[name]().double().eval()
    for unit in network.all_units.values():
        if unit.norm is not None:
            nn.init.uniform_(unit.norm.weight, -1.0, 1.5)
            nn.init.uniform_(unit.norm.bias, -0.5, 0.5)
            nn.init.uniform_(unit.norm.running_mean, -0.5, 0.5)
            nn.init.uniform_(unit.norm.running_var, 0.5, 1.5)
    return network


def images_for(network: Network, batch: int = 3, size: int = 11) -> torch.Tensor:
    return torch.randn(batch, network.input_channels, size, size, dtype=torch.float64)


def outputs_of(output) -> list[torch.Tensor]:
    return list(output) if isinstance(output, tuple) else [output]


class NoiseTask:
    """A task of four classes of 8x8 images: noise, with a bright corner that tells the class. Always the same batches."""

    losses = staticmethod(Classification.losses)

    def __init__(self, channels: int = 3, size: int = 8):
        self.channels, self.size = channels, size

    def batch(self, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        draw = torch.Generator().manual_seed(seed)
        images = torch.randn(8, self.channels, self.size, self.size, generator=draw)
        targets = torch.randint(0, 4, (8,), generator=draw)
        for image, target in zip(images, targets.tolist(), strict=True):
            image[:, 4 * (target // 2) :, 4 * (target % 2) :][:, :4, :4] += 1
        return images, targets

    def sample(self, batches: int):
        return [self.batch(seed) for seed in range(batches)]

    def batches(self, epoch: int):
        return [self.batch(100 + 3 * epoch + number) for number in range(3)]
