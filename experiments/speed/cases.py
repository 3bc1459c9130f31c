"""What is timed, as data: suites of convolutions, poolings and networks.

A convolution is written as its sizes and what departs from the usual:

    64x64x32-128k3s2    64 pictures of 64 channels, 32x32; 128 filters 3x3, stride 2
    16x17x33x31-40k5    pictures 33 high and 31 wide
    8x96x56-96k7g96     96 groups: depthwise

Also p, padding (as much as keeps the size, unless said); d, dilation; f, the first layer of a
network: its block computes no gradient for the picture; +gelu, an activation other than relu. A
pooling is max64x64x56-k3s2p1 or avg64x64x32-k2s2p0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar

SHAPE = re.compile(
    r"(?P<kind>max|avg|)(?P<batch>\d+)x(?P<channels>\d+)x(?P<height>\d+)(?:x(?P<width>\d+))?"
    r"-(?P<filters>\d*)k(?P<kernel>\d+)(?:s(?P<stride>\d+))?(?:p(?P<padding>\d+))?"
    r"(?:d(?P<dilation>\d+))?(?:g(?P<groups>\d+))?(?P<first>f?)(?:\+(?P<activation>\w+))?"
)
ACTIVATIONS = {
    "relu": "ReLU",
    "relu6": "ReLU6",
    "silu": "SiLU",
    "gelu": "GELU",
    "tanh": "Tanh",
    "hardswish": "Hardswish",
    "mish": "Mish",
}


@dataclass(frozen=True)
class Shape:
    """A convolution, or the pooling that ``kind`` names."""

    name: str
    kind: str
    batch: int
    channels: int
    height: int
    width: int
    filters: int
    kernel: int
    stride: int
    padding: int
    dilation: int
    groups: int
    first: bool
    activation: str

    @property
    def operators(self) -> tuple[str, ...]:
        if self.kind:
            return "forward", "backward"
        return "forward", "input gradient", "weight gradient", "layer", "block"

    @property
    def output_size(self) -> tuple[int, int, int, int]:
        reach = self.dilation * (self.kernel - 1) + 1
        height, width = (
            (size + 2 * self.padding - reach) // self.stride + 1
            for size in (self.height, self.width)
        )
        return self.batch, self.filters, height, width

    def check(self) -> None:
        if min(self.batch, self.channels, self.filters, self.kernel, self.stride) < 1:
            raise ValueError(f"{self.name}: sizes, kernel and stride must be at least 1")
        if self.groups < 1 or self.channels % self.groups or self.filters % self.groups:
            raise ValueError(f"{self.name}: groups must divide channels and filters")
        if self.dilation < 1 or min(self.output_size[2:]) < 1:
            raise ValueError(f"{self.name}: the kernel does not fit into the padded picture")
        if self.kind and (2 * self.padding > self.kernel or self.dilation * self.groups > 1):
            raise ValueError(f"{self.name}: a pooling has no groups, dilation or padding so large")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"{self.name}: expected an activation of {', '.join(ACTIVATIONS)}")

    def work(self, operator: str) -> tuple[float, float]:
        """Operations of the direct arithmetic, and bytes that must be read or written once.

        An operation is a multiplication or an addition; a pooling's are not counted. ``block`` is
        forward and backward pass: it reads input and weight twice and writes their gradients,
        writes and reads the output, and reads the output's gradient.
        """
        batch, filters, height, width = self.output_size
        input = 4.0 * batch * self.channels * self.height * self.width
        output = 4.0 * batch * filters * height * width
        if self.kind:
            return 0.0, input + output
        filter_size = self.channels // self.groups * self.kernel**2
        product = 2.0 * batch * filters * height * width * filter_size
        weight = 4.0 * filters * filter_size
        if operator != "block":
            return product, input + weight + output
        if self.first:
            return 2 * product, 2 * input + 3 * weight + 3 * output
        return 3 * product, 3 * (input + weight + output)


@dataclass(frozen=True)
class Network:
    """Whole training steps: forward pass, backward pass and SGD with momentum."""

    model: str
    batch: int
    pixels: int

    operators: ClassVar[tuple[str, ...]] = ("training step",)

    @property
    def name(self) -> str:
        return f"{self.model} {self.batch}x3x{self.pixels}"

    def work(self, operator: str) -> tuple[float, float]:
        """Not counted: a network is no single point of a roofline."""
        return 0.0, 0.0


Case = Shape | Network

# torchvision's, with two small pictures: what a call costs beside its arithmetic counts there.
SMALL_PICTURES = (
    "resnet18", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "densenet121",
    "squeezenet1_1", "shufflenet_v2_x1_0",
)  # fmt: skip

NETWORKS = {
    "resnet20": Network("resnet20", 64, 32),
    "vgg": Network("vgg", 64, 32),
    "vgg16": Network("vgg16", 64, 32),
    "mobilenetv2": Network("mobilenetv2", 16, 224),
} | {name: Network(name, 2, 64) for name in SMALL_PICTURES}


def parse(name: str, batch: int | None = None) -> Case:
    """The case of that name, with another batch if asked for; ValueError if there is none."""
    if name in NETWORKS:
        network = NETWORKS[name]
        return network if batch is None else replace(network, batch=batch)
    if batch is not None:
        name = re.sub(r"^(max|avg|)\d+x", rf"\g<1>{batch}x", name)
    match = SHAPE.fullmatch(name)
    if match is None or bool(match["kind"]) == bool(match["filters"]):
        raise ValueError(f"{name}: expected a shape such as 64x64x32-128k3s2, or a network's name")
    said = {key: int(text) for key, text in match.groupdict().items() if (text or "").isdigit()}
    sizes = {"width": said["height"], "filters": said["channels"]}
    sizes |= {"stride": 1, "dilation": 1, "groups": 1} | said
    sizes.setdefault("padding", sizes["dilation"] * (sizes["kernel"] - 1) // 2)
    first, activation = bool(match["first"]), match["activation"] or "relu"
    case = Shape(name, match["kind"], **sizes, first=first, activation=activation)
    case.check()
    return case


SUITES = {
    "core": """64x3x32-64k3 64x64x32-64k3 64x64x32-128k3s2 64x128x16-128k3 64x256x8-256k3
        64x512x4-512k3 64x64x32-64k1 32x256x14-1024k1 16x64x56-64k3 8x3x224-64k7s2f
        64x96x32-96k3g96 64x128x16-128k3g32 64x16x32-16k3 1x64x56-64k3""",
    "cifar-resnet20": """128x3x32-16k3f 128x16x32-16k3 128x16x32-32k3s2 128x32x16-32k3
        128x32x16-64k3s2 128x64x8-64k3""",
    "cifar-vgg": """64x3x32-64k3f 64x64x32-64k3 64x64x16-128k3 64x128x16-128k3 64x128x8-256k3
        64x256x8-256k3 64x256x4-512k3 64x512x4-512k3 64x512x2-512k3""",
    "wideresnet28-10": """32x3x32-16k3f 32x16x32-160k3 32x16x32-160k1 32x160x32-160k3
        32x160x32-320k3s2 32x160x32-320k1s2 32x320x16-320k3 32x320x16-640k3s2 32x320x16-640k1s2
        32x640x8-640k3""",
    "resnet50": """16x3x224-64k7s2f 16x64x56-64k1 16x64x56-64k3 16x64x56-256k1 16x256x56-64k1
        16x256x56-128k1 16x128x56-128k3s2 16x128x28-512k1 16x256x56-512k1s2 16x512x28-128k1
        16x128x28-128k3 16x512x28-256k1 16x256x28-256k3s2 16x256x14-1024k1 16x512x28-1024k1s2
        16x1024x14-256k1 16x256x14-256k3 16x1024x14-512k1 16x512x14-512k3s2 16x512x7-2048k1
        16x1024x14-2048k1s2 16x2048x7-512k1 16x512x7-512k3""",
    "mobilenetv2": """16x3x224-32k3s2f 16x32x112-32k3g32 16x32x112-16k1 16x16x112-96k1
        16x96x112-96k3s2g96 16x96x56-24k1 16x24x56-144k1 16x144x56-144k3g144 16x144x56-24k1
        16x144x56-144k3s2g144 16x144x28-32k1 16x32x28-192k1 16x192x28-192k3g192
        16x192x28-192k3s2g192 16x192x14-64k1 16x64x14-384k1 16x384x14-384k3g384 16x384x14-96k1
        16x96x14-576k1 16x576x14-576k3g576 16x576x14-576k3s2g576 16x576x7-160k1 16x160x7-960k1
        16x960x7-960k3g960 16x960x7-320k1 16x320x7-1280k1""",
    "convnext-tiny": """8x3x224-96k4s4p0f 8x96x56-96k7g96 8x96x56-192k2s2p0 8x192x28-192k7g192
        8x192x28-384k2s2p0 8x384x14-384k7g384 8x384x14-768k2s2p0 8x768x7-768k7g768""",
    "unet": """1x1x512-64k3f 1x64x512-64k3 1x64x256-128k3 1x128x256-128k3 1x128x128-256k3
        1x256x128-256k3 1x256x64-512k3 1x512x64-512k3 1x512x32-1024k3 1x1024x32-1024k3
        1x128x512-64k3 1x64x512-2k1""",
    "batch1": """1x3x224-64k7s2f 1x64x56-64k3 1x128x28-128k3 1x256x14-256k3 1x512x7-512k3
        1x64x56-256k1 1x256x14-1024k1 1x96x56-96k7g96 1x144x56-144k3g144 1x64x32-64k3
        1x16x32-16k3""",
    "ragged": """16x17x33x31-40k3 16x40x29x35-72k3 16x72x15x17-17k3 16x17x33x31-40k1
        16x40x33x31-72k3s2 16x40x31x33-40k5 16x72x31x29-72k3g72 16x72x31x29-72k5s2g72
        16x40x27x25-40k3d2 16x40x21x23-72k3g8 1x17x57x59-40k3 16x5x61x67-17k7s2""",
    "activations": """64x64x32-64k3 64x64x32-64k3+silu 64x64x32-64k3+gelu 64x64x32-64k3+tanh""",
    "pooling": """max64x64x32-k2s2p0 avg64x64x32-k2s2p0 max64x64x56-k3s2p1 avg64x64x56-k3s2p1""",
    "training": "resnet20 vgg vgg16 mobilenetv2",
    "small-pictures": " ".join(SMALL_PICTURES),
}
# What is timed of a suite's convolutions unless the command line says: by default all but "layer",
# the forward pass with bias and activation.
OPERATORS = {"activations": ("layer", "block")}
DEFAULT_OPERATORS = ("forward", "input gradient", "weight gradient", "block")
