"""Maps of numbers as pictures: a PNG of colours under an SVG of numbers and frames.

Zero is white, positive values are orange, negative ones blue, the more so the larger they are. Both
ends are light enough for dark numbers on them.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from torch import Tensor

Colour = tuple[int, int, int]

WHITE: Colour = (255, 255, 255)
POSITIVE: Colour = (233, 138, 62)
NEGATIVE: Colour = (94, 149, 209)

UNIT = 20  # SVG units a cell
BLOCK = 8  # pixels a cell: where a viewer smooths what it enlarges, only the seams are smoothed
READABLE = 0.46  # rem: numbers that would have to be smaller are left out


def mix(share: float, colour: Colour, paper: Colour = WHITE) -> Colour:
    """``share`` of the way from paper to colour."""
    return tuple(round(p + share * (c - p)) for c, p in zip(colour, paper, strict=True))  # type: ignore[return-value]


def diverging(value: float, scale: float) -> Colour:
    """Colour of a value on a map whose largest magnitude is ``scale``."""
    share = min(1.0, abs(value) / scale) if scale else 0.0
    return mix(share, POSITIVE if value > 0 else NEGATIVE)


def png(pixels: Sequence[Sequence[Colour]], block: int = BLOCK) -> bytes:
    """A PNG file of rows of colours, each drawn as a square of ``block`` pixels."""
    height, width = len(pixels), len(pixels[0])
    lines = (b"\0" + b"".join(bytes(colour) * block for colour in row) for row in pixels)
    raw = b"".join(line * block for line in lines)

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width * block, height * block, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)


def data_uri(pixels: Sequence[Sequence[Colour]]) -> str:
    """The PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode("ascii")


def number(value: float, decimals: int = 2) -> str:
    """A value for a reader: few decimals, no trailing zeros, a minus sign."""
    text = f"{value:.{decimals}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text.replace("-", "−")


def cell_number(value: float, decimals: int) -> str:
    """A value in a cell, short so that it can be large: at most three digits, and .5 for 0.5."""
    text = number(value, min(decimals, 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0))
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


class Box(NamedTuple):
    """A rectangle of cells."""

    top: int
    left: int
    height: int
    width: int


def _rect(box: Box, kind: str) -> str:
    x, y, width, height = (UNIT * v for v in (box.left, box.top, box.width, box.height))
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}"/>'


def _numbers(rows: list[list[float]], cell: float) -> str:
    """The numbers of a map with cells of ``cell`` rem, or nothing where they would be too small."""
    for decimals in (2, 1):
        labels = [[cell_number(value, decimals) for value in row] for row in rows]
        longest = max(len(label) for row in labels for label in row)
        size = UNIT * min(0.46, 0.86 / (0.58 * longest))  # a digit takes about 0.58 of its size
        if size / UNIT * cell >= READABLE:
            break
    else:
        return ""
    out = [f'<g class="numbers" font-size="{size:.1f}">']
    for i, row in enumerate(labels):
        y = UNIT * (i + 0.5) + 0.35 * size
        for j, label in enumerate(row):
            zero = ' class="zero"' if label == "0" else ""
            out.append(f'<text{zero} x="{UNIT * j + UNIT // 2}" y="{y:.1f}">{label}</text>')
    return "".join([*out, "</g>"])


def heat_map(
    values: Tensor,
    *,
    label: str,
    scale: float,
    cell: float,
    window: Box | None = None,
    inside: Box | None = None,
) -> str:
    """A map [H, W] as an SVG of ``cell`` rem a value.

    ``scale`` is the magnitude with the fullest colour. ``window`` is framed; what lies outside
    ``inside`` is padding and drawn grey. Numbers are printed where cells have room for them.
    """
    rows = values.tolist()
    height, width = len(rows), len(rows[0])
    w, h = UNIT * width, UNIT * height
    extremes = f"from {number(values.min().item())} to {number(values.max().item())}"
    about = escape(f"{label}: {height} by {width} values {extremes}")
    pixels = [[diverging(value, scale) for value in row] for row in rows]
    if inside is not None:
        pixels = [
            [colour if _within(inside, i, j) else (236, 238, 241) for j, colour in enumerate(line)]
            for i, line in enumerate(pixels)
        ]
    lines = [f"M{UNIT * j} 0V{h}" for j in range(1, width)]
    lines += [f"M0 {UNIT * i}H{w}" for i in range(1, height)]
    parts = [
        f'<svg role="img" aria-label="{about}" viewBox="-1.5 -1.5 {w + 3} {h + 3}"'
        f' style="--width:{width * cell:.2f}rem">',
        f'<image href="{data_uri(pixels)}" width="{w}" height="{h}" preserveAspectRatio="none"/>',
        f'<path class="grid" d="{"".join(lines)}"/>',
        _rect(Box(0, 0, height, width), "edge"),
        _numbers(rows, cell),
    ]
    if inside is not None:
        parts.append(_rect(inside, "inside"))
    if window is not None:
        parts.append(_rect(window, "window"))
    return "".join([*parts, "</svg>"])


def _within(box: Box, i: int, j: int) -> bool:
    return box.top <= i < box.top + box.height and box.left <= j < box.left + box.width


def photograph(maps: Tensor) -> str:
    """The address of a picture of all maps [K, H, W] together, in colours the eye expects."""
    inks: tuple[Colour, Colour] = ((156, 62, 44), (38, 124, 140))  # of a picture of two maps
    rows = maps.permute(1, 2, 0).tolist()

    def colour(values: list[float]) -> Colour:
        if len(values) == 2:
            return mix(values[1], inks[1], mix(values[0], inks[0]))
        red, green, blue = (round(255 * v) for v in (values if len(values) == 3 else values * 3))
        return red, green, blue

    return data_uri([[colour(values) for values in row] for row in rows])


def curve(
    functions: Sequence[tuple[str, str, Callable[[list[float]], list[float]]]], reach: float = 3.0
) -> str:
    """A plot of functions over [-reach, reach]: (class, name, values at a list of places) each."""
    count = 121
    places = [reach * (2 * i / (count - 1) - 1) for i in range(count)]
    drawn = [(kind, name, values(places)) for kind, name, values in functions]
    low = min(-0.6, *(min(v) for _, _, v in drawn))
    high = max(1.2, *(max(v) for _, _, v in drawn))
    low, high = max(low, -1.3), min(high, 1.9)
    w, h = 300.0, 46 * (high - low)

    def y(value: float) -> float:
        return h * (high - value) / (high - low)

    parts = [
        f'<svg role="img" class="curve" viewBox="-2 -2 {w + 4:.0f} {h + 22:.0f}" aria-label="'
        f'{escape(" and ".join(name for _, name, _ in drawn))} from {-reach:.0f} to {reach:.0f}">'
        f'<path class="axis" d="M0 {y(0):.1f}H{w:.0f}M{w / 2:.0f} 0V{h:.1f}'
        f'M{w / 2 - 4:.0f} {y(1):.1f}h8"/>'
        f'<text x="{w / 2 - 16:.0f}" y="{y(1) + 5:.1f}">1</text>'
        f'<text x="{w - 9:.0f}" y="{y(0) + 15:.1f}">p</text>'
    ]
    for kind, _, values in drawn:
        path, pen = [], "M"
        for i, value in enumerate(values):
            if not low <= value <= high:
                pen = "M"
                continue
            jump = i > 0 and abs(value - values[i - 1]) > 0.5  # a step is no slope
            path.append(f"{'M' if jump else pen}{w * i / (count - 1):.1f} {y(value):.1f}")
            pen = "L"
        parts.append(f'<path class="{kind}" d="{"".join(path)}"/>')
    return "".join([*parts, "</svg>"])
