"""Which file of csrc/ may include which: every include goes one way.

Core knows only core; an algorithm's room knows core, what all rooms of its device share and itself;
algorithm.cpp knows every algorithm, by its one header; the torch rooms alone know torch.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
DEVICES = ("cpu", "cuda")
HEADERS_OF_A_ROOM = {"reference": ("conv2d.h", "pool2d.h")}  # of others: <name>/<name>.h

# What today's code does against the rules, and why.
EXCEPTIONS = {
    ("core/types.h", "<torch/headeronly/util/BFloat16.h>"): "a number, which needs no library",
    ("core/types.h", "<torch/headeronly/util/Half.h>"): "a number, which needs no library",
    (
        "cpu/pool/pool.cpp",
        "cpu/reference/pool2d.h",
    ): "pooling has one algorithm, and chooses itself",
    ("cuda/torch/conv2d.cpp", "cuda/reference/conv2d.h"): "asks torch for TF32 and memory, and so",
    ("cuda/torch/conv2d.cpp", "cuda/implicit_gemm/implicit_gemm.h"): "calls the algorithm itself",
    ("cuda/torch/conv2d.cpp", "cuda/depthwise/depthwise.h"): "the same, and the backward pass",
    ("cuda/device.h", "shim.h"): "tests/native/cuda, where there is no GPU",
}
# In no folder of which an algorithm computes convolutions: the torch room calls them.
CALLED_BY_TORCH = ("elementwise", "pool")


def allowed(file: str, target: str) -> bool:
    """May this file include that one? Paths are relative to csrc/; <...> is a system's header."""
    room, other = file.rpartition("/")[0], target.rpartition("/")[0]
    device, _, name = room.partition("/")
    in_torch = room == "torch" or name == "torch"
    if target.startswith("<"):
        return in_torch or not target.startswith("<torch/")
    if other in (room, "core"):
        return True
    if device not in DEVICES:  # core, torch
        return room == "torch" and other == "core"
    if in_torch and other == "torch":
        return True
    if other == device or (other == f"{device}/simd" and name not in ("", "torch")):
        return True
    algorithm = other.removeprefix(f"{device}/")
    one_header = HEADERS_OF_A_ROOM.get(algorithm, (f"{algorithm}.h",))
    if other not in (f"{device}/{algorithm}", f"{device}/reference") or algorithm == "torch":
        return False
    enters = file == f"{device}/algorithm.cpp" or (in_torch and algorithm in CALLED_BY_TORCH)
    return enters and target.rpartition("/")[2] in one_header


def includes() -> list[tuple[str, str]]:
    found = []
    for path in sorted(CSRC.rglob("*.*")):
        for quoted, system in re.findall(r'^#include (?:"(.+)"|(<.+>))', path.read_text(), re.M):
            found.append((path.relative_to(CSRC).as_posix(), quoted or system))
    return found


def test_every_include_goes_the_right_way() -> None:
    against = [(file, target) for file, target in includes() if not allowed(file, target)]
    assert set(against) - set(EXCEPTIONS) == set()
    assert set(EXCEPTIONS) - set(against) == set(), "no longer needed"


def test_every_include_is_relative_to_csrc() -> None:
    quoted = {pair for pair in includes() if not pair[1].startswith("<")}
    assert not {pair for pair in quoted - set(EXCEPTIONS) if not (CSRC / pair[1]).is_file()}


@pytest.mark.parametrize(
    ("file", "target"),
    [
        ("core/integers.h", "cpu/parallel.h"),
        ("core/integers.h", "torch/checks.h"),
        ("torch/checks.h", "cpu/algorithm.h"),
        ("cpu/scratch.h", "cpu/simd/patch.h"),
        ("cpu/scratch.h", "cpu/torch/boundary.h"),
        ("cpu/winograd/winograd.cpp", "cpu/direct/direct.h"),
        ("cpu/winograd/winograd.cpp", "cpu/reference/conv2d.h"),
        ("cpu/winograd/winograd.cpp", "cpu/torch/boundary.h"),
        ("cpu/winograd/winograd.cpp", "<torch/csrc/stable/ops.h>"),
        ("cpu/simd/patch.h", "cpu/direct/plan.h"),
        ("cpu/algorithm.cpp", "cpu/winograd/plan.h"),
        ("cpu/torch/conv2d.cpp", "cpu/winograd/winograd.h"),
        ("cpu/torch/pool2d.cpp", "cpu/pool/kernel.h"),
        ("cuda/pool/pool.cu", "cpu/parallel.h"),
        ("cuda/grid.h", "torch/binding.h"),
    ],
)
def test_what_must_not_be(file: str, target: str) -> None:
    assert not allowed(file, target)
