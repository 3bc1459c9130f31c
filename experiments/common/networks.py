"""The networks of the experiments, each built with the convolution class asked for.

``build`` draws every initial weight from torch's global generator, in the same order whatever
the convolution class: the same seed gives the same network.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from experiments.common.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

Conv = type[nn.Conv2d]


class InLayer(nn.Identity):
    """Takes the place of an activation that is part of the layer before it."""


class Lecture(nn.Sequential):
    """Conv, pool, conv, pool, dense: the plain network of the lecture, valid convolutions.

    With torch's convolution it is made of torch's layers alone; with another, which takes an
    ``activation``, of torch_convbp's alone: g in the convolution, pools and dense layer.
    """

    def __init__(self, conv: Conv, classes: int, image_size: int) -> None:
        side = ((image_size - 4) // 2 - 4) // 2
        relu: type[nn.Module]
        pool: type[nn.MaxPool2d]
        dense: type[nn.Linear]
        if conv is nn.Conv2d:
            conv1, conv2 = conv(3, 32, 5), conv(32, 64, 5)
            relu, pool, dense = nn.ReLU, nn.MaxPool2d, nn.Linear
        else:
            import torch_convbp as bp

            conv1 = conv(3, 32, 5, activation="relu")  # type: ignore[call-arg]
            conv2 = conv(32, 64, 5, activation="relu")  # type: ignore[call-arg]
            relu, pool, dense = InLayer, bp.MaxPoolBP2d, bp.LinearBP
        super().__init__(
            OrderedDict(
                conv1=conv1,
                relu1=relu(),
                pool1=pool(2),
                conv2=conv2,
                relu2=relu(),
                pool2=pool(2),
                flatten=nn.Flatten(),
                dense=dense(64 * side * side, classes),
            )
        )


def conv3(conv: Conv, inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution that keeps the size; no bias, which a batch norm would cancel."""
    return conv(inputs, outputs, 3, stride, padding=1, bias=False)


def head(inputs: int, classes: int) -> OrderedDict[str, nn.Module]:
    """Return the mean over each map and a dense layer."""
    return OrderedDict(
        mean=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), dense=nn.Linear(inputs, classes)
    )


class VGG(nn.Sequential):
    """Stages of 3x3 convolutions, batch norm and ReLU, a pool after each stage."""

    def __init__(self, conv: Conv, classes: int, stages: tuple[tuple[int, ...], ...]) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        inputs = 3
        for stage, widths in enumerate(stages, 1):
            for place, width in enumerate(widths, 1):
                layers[f"conv{stage}_{place}"] = conv3(conv, inputs, width)
                layers[f"norm{stage}_{place}"] = nn.BatchNorm2d(width)
                layers[f"relu{stage}_{place}"] = nn.ReLU()
                inputs = width
            layers[f"pool{stage}"] = nn.MaxPool2d(2)
        super().__init__(layers | head(inputs, classes))


SMALL_VGG = ((32, 32), (64, 64), (128, 128))
VGG11 = ((64,), (128,), (256, 256), (512, 512), (512, 512))


class Shortcut(nn.Module):
    """The shortcut without weights: every ``stride``-th pixel, missing channels filled with 0."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.missing = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, ceil(H / stride), ceil(W / stride))."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.missing))


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut around them."""

    def __init__(self, conv: Conv, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3(conv, inputs, outputs, stride)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = conv3(conv, outputs, outputs)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = Shortcut(inputs, outputs, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, ceil(H / stride), ceil(W / stride))."""
        residual = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return self.relu2(residual + self.shortcut(x))


class ResNet(nn.Sequential):
    """The residual network for 32x32 pictures, 6 ``blocks`` + 2 layers: 3 stages, 16 to 64 maps."""

    def __init__(self, conv: Conv, classes: int, blocks: int) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=conv3(conv, 3, 16), norm0=nn.BatchNorm2d(16), relu0=nn.ReLU()
        )
        inputs = 16
        for stage, outputs in enumerate((16, 32, 64), 1):
            for place in range(1, blocks + 1):
                stride = 2 if stage > 1 and place == 1 else 1
                layers[f"block{stage}_{place}"] = Block(conv, inputs, outputs, stride)
                inputs = outputs
        super().__init__(layers | head(inputs, classes))


def converted(net: nn.Module, conv: Conv) -> nn.Module:
    """Turn a network of torchvision's into ConvBP2d by ``bp.convert``, as a user would."""
    if conv is nn.Conv2d:
        return net
    import torch_convbp as bp

    return bp.convert(net)


def resnet18(conv: Conv, classes: int, stem: str) -> nn.Module:
    """torchvision's resnet18.

    ``stem="cifar"`` replaces its 7x7 stride-2 convolution and pool, made for large pictures,
    by one 3x3 convolution.
    """
    import torchvision

    net = torchvision.models.resnet18(num_classes=classes)
    if stem == "cifar":
        net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        net.maxpool = nn.Identity()
    return converted(net, conv)


class WideBlock(nn.Module):
    """Norm and ReLU before each of two 3x3 convolutions, and a shortcut around them."""

    def __init__(self, conv: Conv, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(inputs), nn.ReLU()
        self.conv1 = conv3(conv, inputs, outputs, stride)
        self.norm2, self.relu2 = nn.BatchNorm2d(outputs), nn.ReLU()
        self.conv2 = conv3(conv, outputs, outputs)
        self.shortcut = conv(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, ceil(H / stride), ceil(W / stride))."""
        a = self.relu1(self.norm1(x))
        around = x if self.shortcut is None else self.shortcut(a)
        return around + self.conv2(self.relu2(self.norm2(self.conv1(a))))


class WideResNet(nn.Sequential):
    """WideResNet-16-4: 3 stages of 2 blocks, four times as wide as ResNet-20."""

    def __init__(self, conv: Conv, classes: int) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(conv0=conv3(conv, 3, 16))
        inputs = 16
        for stage, outputs in enumerate((64, 128, 256), 1):
            for place in (1, 2):
                stride = 2 if stage > 1 and place == 1 else 1
                layers[f"block{stage}_{place}"] = WideBlock(conv, inputs, outputs, stride)
                inputs = outputs
        layers["norm"], layers["relu"] = nn.BatchNorm2d(inputs), nn.ReLU()
        super().__init__(layers | head(inputs, classes))


class Residual(nn.Sequential):
    """A sequence with a shortcut around it."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return x + super().forward(x)


class ConvMixer(nn.Sequential):
    """ConvMixer-128/4: 2x2 patches, then depthwise 5x5 and pointwise convolutions in turn."""

    def __init__(self, conv: Conv, classes: int, width: int = 128, depth: int = 4) -> None:
        def active(layer: nn.Module) -> tuple[nn.Module, ...]:
            return layer, nn.GELU(), nn.BatchNorm2d(width)

        layers: OrderedDict[str, nn.Module] = OrderedDict(
            patches=nn.Sequential(*active(conv(3, width, 2, 2)))
        )
        for place in range(1, depth + 1):
            spatial = conv(width, width, 5, padding=2, groups=width)
            layers[f"depthwise{place}"] = Residual(*active(spatial))
            layers[f"pointwise{place}"] = nn.Sequential(*active(conv(width, width, 1)))
        super().__init__(layers | head(width, classes))


def mobilenetv2(conv: Conv, classes: int) -> nn.Module:
    """torchvision's MobileNetV2 without the stem's stride, for 32x32 pictures."""
    import torchvision

    net = torchvision.models.mobilenet_v2(num_classes=classes)
    net.features[0][0].stride = (1, 1)
    return converted(net, conv)


NETWORKS: dict[str, Callable[[Conv, int, int, str], nn.Module]] = {
    "lecture": lambda conv, classes, image_size, stem: Lecture(conv, classes, image_size),
    "vgg": lambda conv, classes, image_size, stem: VGG(conv, classes, SMALL_VGG),
    "resnet20": lambda conv, classes, image_size, stem: ResNet(conv, classes, 3),
    "resnet18": lambda conv, classes, image_size, stem: resnet18(conv, classes, stem),
    "vgg11": lambda conv, classes, image_size, stem: VGG(conv, classes, VGG11),
    "resnet56": lambda conv, classes, image_size, stem: ResNet(conv, classes, 9),
    "mobilenetv2": lambda conv, classes, image_size, stem: mobilenetv2(conv, classes),
    "wideresnet16_4": lambda conv, classes, image_size, stem: WideResNet(conv, classes),
    "convmixer": lambda conv, classes, image_size, stem: ConvMixer(conv, classes),
}

# The smallest side of a picture of which the last convolution or pool still leaves a pixel.
SMALLEST = {"lecture": 16, "vgg": 8, "vgg11": 32, "convmixer": 2}


def check_size(option: str, name: str, image_size: int) -> None:
    """Refuse pictures that are too small for a network, in the words of a command line."""
    smallest = SMALLEST.get(name, 1)
    if image_size < smallest:
        raise UsageError(f"{option}: {name} needs at least {smallest}, got {image_size}")


def build(
    name: str, conv: Conv, classes: int, image_size: int = 32, stem: str = "torchvision"
) -> nn.Module:
    """Build the network ``name`` for (N, 3, image_size, image_size) with convolutions ``conv``."""
    if name not in NETWORKS:
        raise ValueError(f"name: expected one of {', '.join(NETWORKS)}, got {name!r}")
    return NETWORKS[name](conv, classes, image_size, stem)


def convolutions(net: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    """Every convolution of ``net`` with its name."""
    return [(name, m) for name, m in net.named_modules() if isinstance(m, nn.Conv2d)]
