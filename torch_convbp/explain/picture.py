"""The picture that goes into the layer: a built-in drawing, or the user's own, made small.

Entries are multiples of 1/64 between 0 and 1. Filters and biases are multiples of 1/16, so every
pre-activation is exact in float64, in any order of summation: no rounding decides on which side of
a kink of g a position falls, and the three computations of a page can be compared to the last bits.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_convbp.explain.errors import UsageError

SMALLEST = 5
STEPS = 64

# A boat under sail (#, the first map), with sun and waves (o, the second map).
BOAT = """
............
.oo..#......
.oo..##.....
.....###....
.....####...
.....#####..
.....#......
.#########..
..#######...
............
oo..oo..oo..
..oo..oo..oo
"""


class Picture(NamedTuple):
    """Maps [K, H, W] in float64, with a word for each."""

    maps: Tensor
    names: tuple[str, ...]
    title: str


def built_in() -> Picture:
    """Return the boat: two maps of 12 x 12, of zeros and ones."""
    lines = BOAT.split()
    maps = [[[float(mark == ink) for mark in line] for line in lines] for ink in "#o"]
    title = "a boat under sail"
    return Picture(torch.tensor(maps, dtype=torch.float64), ("boat", "sun and waves"), title)


def from_file(path: Path, size: int) -> Picture:
    """Return the picture of a file, its longer side averaged down to at most ``size`` pixels.

    A grey picture is one map, a coloured one three: red, green and blue.
    """
    pixels = read(path)
    height, width = pixels.shape[1:]
    shrink = min(1.0, size / max(height, width))
    small = (round(height * shrink), round(width * shrink))
    if min(small) < SMALLEST:
        raise UsageError(
            f"--picture: {path}, {width} x {height} pixels, is made {small[1]} x {small[0]}; "
            f"expected at least {SMALLEST} each way, to move a filter of 3 x 3 about"
        )
    maps = F.adaptive_avg_pool2d(pixels.double() / 255, small)
    maps = (maps * STEPS).round() / STEPS
    if torch.equal(pixels[0], pixels[1]) and torch.equal(pixels[0], pixels[2]):
        return Picture(maps[:1], ("brightness",), path.name)
    return Picture(maps, ("red", "green", "blue"), path.name)


def read(path: Path) -> Tensor:
    """Return the pixels of a picture file, [3, H, W] in uint8, with what PIL or torchvision read.

    Neither is needed for anything else, so both are looked for only here.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "is not there"
        raise UsageError(f"--picture: {path} {found}; expected a picture file")
    readers = {"PIL": with_pillow, "torchvision": with_torchvision}
    installed = [reader for name, reader in readers.items() if find_spec(name)]
    if not installed:
        raise UsageError(
            "--picture: reading a picture needs Pillow or torchvision, and neither is installed "
            "(pip install pillow); without --picture a built-in one is taken"
        )
    try:
        return installed[0](path)
    except Exception as error:  # a decoder may raise anything on damaged bytes
        raise UsageError(f"--picture: {path} cannot be read as a picture ({error})") from None


def with_pillow(path: Path) -> Tensor:
    """Return the pixels as they are seen: upright, and on white where transparent."""
    from PIL import Image, ImageOps

    with Image.open(path) as file:
        seen = ImageOps.exif_transpose(file).convert("RGBA")
    white = Image.new("RGBA", seen.size, "white")
    seen = Image.alpha_composite(white, seen).convert("RGB")
    pixels = torch.frombuffer(bytearray(seen.tobytes()), dtype=torch.uint8)
    return pixels.reshape(seen.height, seen.width, 3).permute(2, 0, 1)


def with_torchvision(path: Path) -> Tensor:
    """Return the pixels as torchvision decodes them."""
    from torchvision.io import ImageReadMode, decode_image

    return decode_image(str(path), ImageReadMode.RGB, apply_exif_orientation=True)
