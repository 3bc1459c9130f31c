"""The CUDA kernels without a GPU (tests/native/cuda), and that this sees what is wrong.

The program runs every kernel on random problems, a fiber for each thread, under sanitizers. Seeded
bugs: a copy of csrc/ in which one thing is wrong has to make it fail.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SHIM = ROOT / "tests" / "native" / "cuda"
ORDERS = ("forward", "reversed")


def make(out: Path, sources: Path, target: str = "build") -> None:
    compiler = os.environ.get("CXX", "g++")
    if not (shutil.which("make") and shutil.which(compiler)):
        pytest.skip(f"make and {compiler} are needed")
    probe = subprocess.run(
        [compiler, "-fsanitize=address,undefined", "-x", "c++", "-", "-o", os.devnull],
        input="int main() {}", capture_output=True, text=True,
    )  # fmt: skip
    if probe.returncode:
        pytest.skip(f"{compiler} does not link with the sanitizers: {probe.stderr[-200:]}")
    include = Path(torch.__file__).parent / "include"
    built = subprocess.run(
        ["make", "-s", "-j2", "-C", str(SHIM), f"TORCH_INCLUDE={include}", f"CXX={compiler}",
         f"OUT={out}", f"SOURCES={sources}", target],
        capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr


def run(out: Path, order: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(out / "kernels"), *arguments], env={**os.environ, "CONVBP_SHIM_ORDER": order},
        capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def shim() -> Path:
    out = ROOT / "build" / "cuda-shim"
    make(out, ROOT / "csrc")
    return out


def test_nothing_is_wrong(shim: Path) -> None:
    done = run(shim, "forward", "2")
    assert done.returncode == 0, done.stderr
    assert "all equal" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_nothing_is_wrong_on_many_problems(shim: Path, order: str) -> None:
    done = run(shim, order, "25", "1000")
    assert done.returncode == 0, done.stderr
    assert "all equal" in done.stdout


@pytest.mark.slow
def test_the_program_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `make cuda-check` runs: it builds anywhere, and says so where there is no GPU."""
    if not shutil.which("nvcc"):
        pytest.skip("nvcc is needed")
    if not torch.cuda.is_available():
        monkeypatch.setenv("ARCH", "sm_90")
    make(tmp_path, ROOT / "csrc", "gpu")
    done = run(tmp_path / "gpu", "forward", "2")
    if torch.cuda.is_available():
        assert done.returncode == 0, done.stderr
        assert "all equal" in done.stdout
    else:
        assert done.returncode == 2
        assert "there is no GPU: " in done.stderr


class Bug(NamedTuple):
    """``old`` is replaced by ``new`` in ``file``; seen by this family of problems."""

    file: str
    old: str
    new: str
    family: str = "gemm"
    type: str = "bfloat16"


BUGS = {
    "no barrier in the main loop": Bug(
        "implicit_gemm/shape.cuh", "2>();\n    barrier();\n", "2>();\n"
    ),
    "no barrier behind the main loop": Bug(
        "implicit_gemm/shape.cuh",
        "wait_for_copies<0>();\n  barrier();\n", "wait_for_copies<0>();\n"
    ),
    "one group of copies not waited for": Bug(
        "implicit_gemm/shape.cuh",
        "wait_for_copies<S::kStages - 2>", "wait_for_copies<S::kStages - 1>"
    ),
    "a tile overwritten while it is read": Bug(
        "implicit_gemm/shape.cuh", "place == 0 ? S::kStages - 1 : place - 1", "place"
    ),
    "a reader without the swizzle": Bug(
        "implicit_gemm/mma.cuh",
        "load_matrices(a, tile.chunk(first + lane % 16, 2 * step + lane / 16, further))",
        "load_matrices(a, tile.data + (first + further + lane % 16) * (depth / kPack<T>) + "
        "2 * step + lane / 16)",
    ),
    "fragments of a pair of columns exchanged": Bug(
        "implicit_gemm/mma.cuh", "tile.chunk(lane % 16, first / 8 + lane / 16,",
        "tile.chunk(lane % 16, first / 8 + 1 - lane / 16,",
    ),
    "TF32: depths that do not agree": Bug(
        "implicit_gemm/mma.cuh",
        "from + (8 * step + i % 2)", "from + (8 * step + i % 2 * 2)", type="TF32",
    ),
    "TF32: bias gradient of rounded deltas": Bug(
        "implicit_gemm/mma.cuh", "    multiply(sum, rest, {kOne, kOne});\n", "",
        family="gemm_rounding", type="TF32",
    ),
    "one filter too many": Bug(
        "implicit_gemm/convolve.cuh", "channel >= c.columns", "channel > c.columns"
    ),
    "one pixel too many": Bug(
        "implicit_gemm/weight_grad.cuh", "has_pixel = i * kInputStep < input_left_",
        "has_pixel = i * kInputStep <= input_left_",
    ),
    "one row of the input too many": Bug(
        "grid.h", "static_cast<unsigned>(position) < static_cast<unsigned>(size)",
        "static_cast<unsigned>(position) <= static_cast<unsigned>(size)",
    ),
    "the end of a row of pixels forgotten": Bug(
        "implicit_gemm/taps.cuh", "if (middle >= middles) middle -= middles, ++outer;", ""
    ),
    "the wrong phase of a strided input gradient": Bug(
        "implicit_gemm/operand.h", "(number + pad - first * dilation) % stride",
        "(number + pad - first * dilation + 1) % stride",
    ),
    "a phase's sources shifted": Bug(
        "implicit_gemm/operand.h", "met ? (number + pad - first * dilation) / stride : 0", "0"
    ),
    "a split left out": Bug(
        "implicit_gemm/split_k_reduce.cuh",
        "split < splits; ++split)\n        sum += w.partial[",
        "split + 1 < std::max(splits, 2u); ++split)\n        sum += w.partial[",
    ),
    "sums of the first run of rows stored for all": Bug(
        "implicit_gemm/split_k_reduce.cuh", "row = run * size.run + e - ", "row = e - ",
    ),
    "bias added twice": Bug(
        "epilogue.h", "one = static_cast<Accumulator<T>>(bias[o])",
        "one = 2 * static_cast<Accumulator<T>>(bias[o])",
    ),
    "biases of a chunk exchanged": Bug(
        "epilogue.h", "(biases.element[i])", "(biases.element[n - 1 - i])", type="float64"
    ),
    "the pre-activation after the activation": Bug(
        "epilogue.h",
        "if (pre_activation) store(sum, pre_activation + offset);\n    activation.apply(sum);",
        "activation.apply(sum);\n    if (pre_activation) store(sum, pre_activation + offset);",
    ),
    "chunks of pixels that do not lie side by side": Bug(
        "implicit_gemm/launch.cuh",
        "c.axis[kHeight].phases == 1 && c.axis[kWidth].phases == 1 &&", ""
    ),
    "a pixel's tap kept for the next one": Bug(
        "implicit_gemm/convolve_load.cuh", "this->step();\n      move_to_tap(before);",
        "this->step();\n      move_to_tap(depth_);",
    ),
    "a row of the input not left at its end": Bug(
        "implicit_gemm/weight_grad.cuh", "y_ += walk.y_stride, input_ += walk.next_row",
        "y_ += walk.y_stride",
    ),
    "padding of channels not zero": Bug(
        "implicit_gemm/pack.cuh",
        "place && channel < size.channels", "place && channel < size.padded"
    ),
    "float64: columns of two lanes exchanged": Bug(
        "implicit_gemm/mma.cuh", "lane + i * lanes", "(lane ^ 1) + i * lanes", type="float64"
    ),
    "depthwise: no barrier behind the filters": Bug(
        "depthwise/depthwise.cuh",
        "  barrier();\n\n  const int c = first", "\n  const int c = first",
        "depthwise", "float32",
    ),
    "depthwise: no barrier behind a tile": Bug(
        "depthwise/depthwise.cuh", "  barrier();\n\n  const int column", "\n  const int column",
        "depthwise", "float32",
    ),
    "depthwise: a tile without its last column": Bug(
        "depthwise/depthwise.cuh", "inside(m + i, height.sources) && inside(n + j, width.sources)",
        "inside(m + i, height.sources) && inside(n + j, width.sources - 1)",
        "depthwise", "float32",
    ),
    "depthwise: one row too many": Bug(
        "depthwise/depthwise.cuh", "|| row >= height.results", "|| row > height.results",
        "depthwise", "float32",
    ),
    "depthwise: strips of a strided gradient begin too late": Bug(
        "depthwise/strip.cuh", "number * length - (kForward ? 0 : a.pad % stride)",
        "number * length", "depthwise", "float32",
    ),
    "depthwise: a split left out": Bug(
        "depthwise/splits.cuh", "split < splits; split += blockDim.y",
        "split < splits - 1; split += blockDim.y", "depthwise", "float32",
    ),
    "depthwise: the last slot left out": Bug(
        "depthwise/weight_grad.cuh", "z < slots; ++z", "z < slots - 1; ++z",
        "depthwise", "float32",
    ),
    "depthwise backward: no barrier behind the deltas": Bug(
        "depthwise/backward.cuh", "    barrier();\n\n    const auto compute",
        "    const auto compute", "depthwise_backward", "float32",
    ),
    "depthwise backward: deltas overwritten while they are read": Bug(
        "depthwise/backward.cuh", "    barrier();\n  }\n\n  // The threads of a channel",
        "  }\n  barrier();\n  // The threads of a channel", "depthwise_backward", "float32",
    ),
    "depthwise backward: the halo counted twice": Bug(
        "depthwise/backward.cuh", "(i >= S::kBehind || tile_row == 0)", "(i >= 0)",
        "depthwise_backward", "float32",
    ),
    "depthwise backward: what lies in front of the first tile not counted": Bug(
        "depthwise/backward.cuh", "(j >= S::kBehind || tile_column == 0)", "(j >= S::kBehind)",
        "depthwise_backward", "float32",
    ),
    "depthwise backward: a column of deltas too far left": Bug(
        "depthwise/backward.cuh", "S::kBehind + (column - s) / stride",
        "S::kBehind + (column - s - 1) / stride", "depthwise_backward", "float32",
    ),
    "depthwise backward: a delta that is not rounded": Bug(
        "depthwise/backward.cuh",
        "static_cast<A>(delta_of<T>(g, grad[0], saved[0]))", "g.error_signal(grad[0], saved[0])",
        "depthwise_backward",
    ),
    "depthwise backward: half of the threads left out": Bug(
        "depthwise/backward.cuh", "kThreads * V / at_once / 2; half > 0",
        "kThreads * V / at_once / 4; half > 0", "depthwise_backward", "float32",
    ),
    "depthwise backward: no kernel for what a padding beyond the filter has": Bug(
        "depthwise/backward.cu", "axis.pad < axis.taps &&", "", "depthwise_backward", "float32",
    ),
    "a sum without its last row of threads": Bug(
        "elementwise/elementwise.cuh",
        "y < Sums::kRows;", "y < Sums::kRows - 1;", "elementwise", "float32"
    ),
    "no barrier before rows are added": Bug(
        "elementwise/elementwise.cuh", "  barrier();\n", "", "elementwise", "float32"
    ),
    "the last split of a bias gradient left out": Bug(
        "elementwise/elementwise.cuh",
        "split < splits;", "split < splits - 1;", "elementwise", "float32"
    ),
    "one channel too many": Bug(
        "elementwise/elementwise.cuh", "if (c < s.size.channels)\n", "if (c <= s.size.channels)\n",
        "elementwise", "float32",
    ),
    "the last of equals wins": Bug(
        "pool/pool.cuh", "value > largest ||", "value >= largest ||", "pools", "float32"
    ),
    "a window too few": Bug(
        "../core/pool_problem.h", "m < rows.end; ++m", "m < rows.end - 1; ++m", "pools", "float32"
    ),
    "padding is not skipped": Bug(
        "../core/reference_sums.h", "position < size;", "position <= size;", "reference", "float32"
    ),
}  # fmt: skip


# What a family's kernels are compiled into, all that share a template; the implicit GEMM's, a file
# for each element type.
DEPTHWISE = [f"cuda/depthwise/{name}.o" for name in ("depthwise", "weight_grad", "backward")]
OBJECTS = {
    "depthwise": DEPTHWISE,
    "depthwise_backward": DEPTHWISE,
    "elementwise": ["cuda/elementwise/elementwise.o"],
    "reference": ["cuda/reference/conv2d.o"],
    "pools": ["cuda/pool/pool.o"],
}


def make_changed(
    built: Path, out: Path, change: tuple[str, str, str], objects: list[str], target: str = "build"
) -> None:
    """What ``target`` makes of csrc/ where in a file, once, something is replaced.

    ``built``: what it made of csrc/ as it is, of which these objects are concerned.
    """
    file, old, new = change
    sources = out.with_name("csrc")
    shutil.copytree(ROOT / "csrc", sources)
    changed = sources / "cuda" / file
    text = changed.read_text()
    assert text.count(old) == 1, f"{file} says {text.count(old)} times: {old}"
    changed.write_text(text.replace(old, new))
    # What is not concerned has not to be compiled again: copied now, it is newer.
    shutil.copytree(built, out, copy_function=shutil.copy)
    for made in objects:
        (out / made).unlink()
    make(out, sources, target)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_a_bug_is_noticed(shim: Path, tmp_path: Path, name: str) -> None:
    bug, out = BUGS[name], tmp_path / "out"
    element = "float32" if bug.type == "TF32" else bug.type
    objects = OBJECTS.get(bug.family, [f"cuda/implicit_gemm/{element}.o"])
    make_changed(shim, out, bug[:3], [*objects, "kernels"])
    runs = [run(out, order, "24", "0", bug.family, bug.type) for order in ORDERS]
    assert any(done.returncode for done in runs), runs[0].stdout
    print(f"{name}: {next(done.stderr for done in runs if done.returncode)[-300:]}")
