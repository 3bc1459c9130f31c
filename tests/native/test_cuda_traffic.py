"""What the CUDA kernels ask of memory, counted without a GPU (tests/native/cuda/traffic.cpp).

How fast a kernel is, no count can say. But that it reads global memory in whole sectors and shared
memory without bank conflicts was arranged with care, and would be lost without a wrong result.
Faults: a copy of csrc/ in which one such arrangement is lost has to be beyond the bounds.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from test_cuda_kernels import OBJECTS, ROOT, make, make_changed

pytestmark = pytest.mark.slow


class Counted(NamedTuple):
    """A line of the program's table."""

    layer: str
    type: str
    layout: str
    operator: str
    kernel: str
    efficiency: float  # the least sectors, as a share of those that move
    conflicts: float  # turns of shared memory, as a multiple of the least
    written: dict[str, float]  # to each tensor, in multiples of its size


class Bound(NamedTuple):
    """Of the kernels of this name, in this layout or both."""

    kernel: str
    efficiency: float
    conflicts: float = 1.0
    layout: str = ""


# For the layers of traffic.cpp. What keeps sectors from being whole where less than 1 is allowed:
# rows of 14 pixels of 2 bytes begin inside of a sector, and so do the taps of torch's filters; a
# first layer's three channels are read one by one; a stride skips half of a sector.
BOUNDS = {
    "3x3-64": [
        Bound("implicit GEMM", 0.97, 1.05),
        Bound("implicit GEMM, weight gradient", 0.55),
        Bound("pack", 0.6), Bound("pack", 1.0, layout="channels_last"),
        Bound("reduce_splits", 1.0),
    ],
    "1x1-100": [
        Bound("implicit GEMM", 0.75, 1.3), Bound("implicit GEMM, weight gradient", 0.6),
        Bound("pack", 0.75), Bound("reduce_splits", 0.9),
    ],
    "stem-3x3": [
        Bound("implicit GEMM", 0.3, 1.4), Bound("implicit GEMM, weight gradient", 0.3),
        Bound("pack", 0.8), Bound("reduce_splits", 0.9, 2.0),
    ],
    "depthwise-3x3": [
        Bound("depthwise", 0.8, 1.2), Bound("depthwise_weight_grad", 0.75),
        Bound("depthwise_backward", 0.8, 1.05), Bound("depthwise_reduce_splits", 0.3),
    ],
    "pool-2": [
        Bound("max_pool2d", 0.4), Bound("max_pool2d", 1.0, layout="channels_last"),
        Bound("avg_pool2d", 0.4), Bound("avg_pool2d", 1.0, layout="channels_last"),
        Bound("avg_pool2d_input_grad", 0.9),
    ],
    "elementwise": [
        Bound("activation", 1.0), Bound("error_signal", 1.0), Bound("bias_grad", 1.0),
        Bound("error_signal_bias_grad", 0.7),
        Bound("error_signal_bias_grad", 1.0, layout="channels_last"),
    ],
}  # fmt: skip

RESULTS = {
    "forward": {"output"}, "input gradient": {"input"}, "weight gradient": {"weight", "bias"},
    "backward": {"input_grad", "weight_grad", "bias"},
    "max": {"output", "offset"}, "average": {"output"}, "average, input gradient": {"input"},
}  # fmt: skip


def count(out: Path, layer: str, type: str = "") -> list[Counted]:
    program = [str(out / "traffic" / "traffic"), layer, type]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    counted = []
    for line in done.stdout.splitlines():
        if line.startswith(" "):  # an instruction
            continue
        *names, efficiency, conflicts, tensors = line.split("; ")
        words = tensors.replace("scratch ", "scratch").split()
        moved = zip(words[0::3], words[1::3], words[2::3], strict=True)
        written = {name: float(size.split("/")[0]) for way, name, size in moved if way == "to"}
        counted.append(Counted(*names, float(efficiency), float(conflicts), written))
    assert counted, f"traffic.cpp has no layer {layer}"
    return counted


def wasteful(counted: list[Counted], layer: str) -> list[str]:
    found = []
    for bound in BOUNDS[layer]:
        for line in counted:
            if line.kernel != bound.kernel or bound.layout not in ("", line.layout):
                continue
            if line.efficiency < bound.efficiency or line.conflicts > bound.conflicts:
                found.append(f"{line} is beyond {bound}")
    return found


@pytest.fixture(scope="module")
def built() -> Path:
    out = ROOT / "build" / "cuda-shim"
    make(out, ROOT / "csrc", "traffic")
    return out


@pytest.mark.parametrize("layer", BOUNDS)
def test_no_access_is_wasted(built: Path, layer: str) -> None:
    counted = count(built, layer)
    idle = {bound.kernel for bound in BOUNDS[layer]} - {line.kernel for line in counted}
    assert not idle, f"no kernel has this name: {idle}"
    assert not (found := wasteful(counted, layer)), "\n".join(found)


@pytest.mark.parametrize("layer", [layer for layer in BOUNDS if layer != "elementwise"])
def test_every_result_is_written_once(built: Path, layer: str) -> None:
    """Also says that the program misses no access."""
    counted = count(built, layer, "bfloat16")
    for operator in {line.operator for line in counted} & RESULTS.keys():
        for layout in ("NCHW", "channels_last"):
            lines = [line for line in counted if (line.operator, line.layout) == (operator, layout)]
            for result in RESULTS[operator]:
                assert sum(line.written.get(result, 0) for line in lines) == 1, (result, lines)


class Fault(NamedTuple):
    """``old`` is replaced by ``new`` in ``file``; seen in this layer."""

    file: str
    old: str
    new: str
    layer: str = "3x3-64"
    family: str = "gemm"


FAULTS = {
    "a tile without its swizzle": Fault("implicit_gemm/tile.cuh", "row / 2 % 4", "row / 2 % 1"),
    "a tile's columns in few banks": Fault(
        "implicit_gemm/pack.cuh", "(sizeof(T) < 4 ? 4 / sizeof(T) : 1)", "0"
    ),
    "a tensor read across": Fault(
        "implicit_gemm/pack.cuh",
        "source.channel <= source.pixel &&", "source.channel > source.pixel &&"
    ),
    "a gradient written across": Fault(
        "implicit_gemm/split_k_reduce.cuh",
        "weight_grad.stride[3] < weight_grad.stride[1]",
        "weight_grad.stride[3] > weight_grad.stride[1]",
    ),
    "neighbours dealt out to blocks": Fault(
        "grid.h", "static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count",
        "static_cast<int64_t>(threadIdx.x) * gridDim.x + blockIdx.x; i < count",
        "elementwise", "elementwise",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_noticed(built: Path, tmp_path: Path, name: str) -> None:
    fault, out = FAULTS[name], tmp_path / "out"
    objects = [*OBJECTS.get(fault.family, ["cuda/implicit_gemm/bfloat16.o"]), "traffic"]
    make_changed(built, out, fault[:3], [f"traffic/{made}" for made in objects], "traffic")
    found = wasteful(count(out, fault.layer, "bfloat16"), fault.layer)
    assert found
    print(f"{name}: {found[0]}")
