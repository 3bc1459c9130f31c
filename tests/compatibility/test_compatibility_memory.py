"""Memory: what is kept for the backward pass, beside torch's layers; and that nothing leaks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from layers import LAYERS, every
from torch import Tensor, nn
from twins import bytes_of, kept

import torch_convbp as bp

SUPPORT = Path(__file__).resolve().parents[1] / "support"
KEPT = "Memory kept for backward"


@dataclass(frozen=True)
class Row:
    """Layers that do the same: torch's, torch's with the activation in place, and ours."""

    torchs: Callable[[], nn.Module]
    in_place: Callable[[], nn.Module] | None
    ours: Callable[[], nn.Module]
    input_size: tuple[int, ...] = (8, 16, 32, 32)
    dtype: torch.dtype = torch.float32


class InPlace(nn.Module):
    """sigmoid_ and tanh_ are no modules."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return getattr(x, self.name)()


# What torch can do in place.
ACTIVATIONS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module] | None]] = {
    "relu": (nn.ReLU, lambda: nn.ReLU(inplace=True)),
    "leaky_relu": (nn.LeakyReLU, lambda: nn.LeakyReLU(inplace=True)),
    "relu6": (nn.ReLU6, lambda: nn.ReLU6(inplace=True)),
    "sigmoid": (nn.Sigmoid, lambda: InPlace("sigmoid_")),
    "tanh": (nn.Tanh, lambda: InPlace("tanh_")),
    "silu": (nn.SiLU, lambda: nn.SiLU(inplace=True)),
    "gelu": (nn.GELU, None),
    "gelu_tanh": (lambda: nn.GELU(approximate="tanh"), None),
    "hardswish": (nn.Hardswish, lambda: nn.Hardswish(inplace=True)),
    "softplus": (nn.Softplus, None),
    "hardsigmoid": (nn.Hardsigmoid, lambda: nn.Hardsigmoid(inplace=True)),
    "mish": (nn.Mish, lambda: nn.Mish(inplace=True)),
    "elu": (nn.ELU, lambda: nn.ELU(inplace=True)),
}


def conv_row(name: str) -> Row:
    g, g_in_place = ACTIVATIONS[name]

    def conv() -> nn.Module:
        return nn.Conv2d(16, 32, 3, padding=1)

    return Row(
        lambda: nn.Sequential(conv(), g()),
        None if g_in_place is None else lambda: nn.Sequential(conv(), g_in_place()),
        lambda: bp.ConvBP2d(16, 32, 3, padding=1, activation=name),
    )


ROWS = {
    "conv2d": Row(
        lambda: nn.Conv2d(16, 32, 3, padding=1), None, lambda: bp.ConvBP2d(16, 32, 3, padding=1)
    ),
    **{f"conv2d + {name}": conv_row(name) for name in ACTIVATIONS},
    "conv2d, complex64": Row(
        lambda: nn.Conv2d(16, 32, 3, padding=1, dtype=torch.complex64),
        None,
        lambda: bp.ConvBP2d(16, 32, 3, padding=1, dtype=torch.complex64),
        dtype=torch.complex64,
    ),
    "max_pool2d": Row(lambda: nn.MaxPool2d(2), None, lambda: bp.MaxPoolBP2d(2)),
    "max_pool2d, windows of 400": Row(lambda: nn.MaxPool2d(20), None, lambda: bp.MaxPoolBP2d(20)),
    "avg_pool2d": Row(lambda: nn.AvgPool2d(2), None, lambda: bp.AvgPoolBP2d(2)),
    "linear": Row(
        lambda: nn.Linear(256, 512), None, lambda: bp.LinearBP(256, 512), (128, 256)
    ),
    "linear + relu": Row(
        lambda: nn.Sequential(nn.Linear(256, 512), nn.ReLU()),
        lambda: nn.Sequential(nn.Linear(256, 512), nn.ReLU(inplace=True)),
        lambda: bp.LinearBP(256, 512, activation="relu"),
        (128, 256),
    ),
}  # fmt: skip

# (is the input's gradient wanted, are the parameters')
VARIANTS = ((True, True), (False, True), (True, False))


def kept_bytes(module: nn.Module, row: Row, wanted: tuple[bool, bool]) -> int:
    """Bytes of all that is kept; parameters are there anyway."""
    wants_input, wants_parameters = wanted
    x = torch.randn(row.input_size, dtype=row.dtype).requires_grad_(wants_input)
    module.requires_grad_(wants_parameters)
    output, tensors = kept(lambda: module(x), module.parameters())
    assert output.requires_grad
    return bytes_of(tensors)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("name", ROWS)
def test_keeps_no_more_than_torch(name: str, cell: Callable[[str, str, str, str], None]) -> None:
    row = ROWS[name]
    has_parameters = any(True for _ in row.ours().parameters())
    variants = VARIANTS if has_parameters else VARIANTS[:1]
    found: dict[str, list[int]] = {}
    for column, make in (
        ("torch", row.torchs),
        ("torch, in place", row.in_place),
        ("torch_convbp", row.ours),
    ):
        if make is not None:
            found[column] = [kept_bytes(make(), row, v) for v in variants]
            numbers = " / ".join(f"{bytes / 1024:g}" for bytes in found[column])
            cell(KEPT, name, column, numbers)
    ours = found.pop("torch_convbp")
    for theirs in found.values():
        assert all(o <= t for o, t in zip(ours, theirs, strict=True)), (ours, theirs)


def test_counts_what_is_kept() -> None:
    """The count itself: an input of 512 KiB and an output of 1024."""
    row = ROWS["conv2d + silu"]
    assert kept_bytes(row.ours(), row, (True, True)) == (512 + 1024) * 1024
    assert kept_bytes(nn.Sequential(row.ours(), nn.Tanh()), row, (True, True)) == (
        (512 + 2 * 1024) * 1024
    )


# --- leaks -------------------------------------------------------------------------------------

WAYS = ("backward", "second derivatives", "a gradient for each sample", "recorded error signals")
# Pages come and go. A tensor a pass, of the hundreds there are, is some kilobytes with its data.
MOST_BYTES = 256 * 1024


@pytest.fixture(scope="module")
def growths() -> dict[tuple[str, str], tuple[int, int, int]]:
    """(layer, way): passes, and how many tensors and bytes are left of them (leaks.py)."""
    done = subprocess.run(
        [sys.executable, str(SUPPORT / "leaks.py")],
        capture_output=True,
        text=True,
        cwd=SUPPORT.parents[1],
    )
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, done.stdout.splitlines())
    return {(layer, way): tuple(rest) for layer, way, *rest in lines}


def leaks(tensors: int, bytes: int) -> bool:
    return tensors > 0 or bytes > MOST_BYTES


def row(way: str) -> object:
    return pytest.param(way, id=way, marks=pytest.mark.cell("Leaks", f"nothing is left: {way}"))


@every()
@pytest.mark.parametrize("way", [row(way) for way in WAYS])
def test_nothing_is_left(
    layer: str, way: str, growths: dict[tuple[str, str], tuple[int, int, int]]
) -> None:
    assert not leaks(*growths[layer, way][1:]), growths[layer, way]


def test_a_leak_is_seen(growths: dict[tuple[str, str], tuple[int, int, int]]) -> None:
    passes, tensors, bytes = growths["conv2d", "leaking"]
    assert tensors >= passes and leaks(0, bytes)
    assert len(growths) == len(LAYERS) * len(WAYS) + 1
