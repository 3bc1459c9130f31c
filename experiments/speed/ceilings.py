"""What the machine can do at most, measured: arithmetic and moving bytes, on one thread and on all,
or on its GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import torch_convbp as bp
from experiments.speed import bandwidth, clocks, timing

COPIED = {"cpu": 1 << 27, "cuda": 1 << 30}  # bytes, beyond any cache


@dataclass
class Ceiling:
    of: str  # what worked
    arithmetic: float  # operations a second
    by: str  # what reached it
    copy: float  # bytes that torch's copy reads and writes a second
    memory: list[tuple[int, float]]  # bytes of a working set; of them read and written a second
    disturbed: bool = False  # other programs used the CPUs meanwhile

    def memory_rate(self, bytes: float) -> float:
        """The rate of the largest working set that is no larger, so that no floor is too high."""
        return min((rate for size, rate in self.memory if size <= bytes), default=self.memory[0][1])


def ceilings(threads: int, dtype: torch.dtype, runs: int) -> list[Ceiling]:
    """The most that one thread reaches, and all."""
    found = []
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        of = f"{count} thread{'s' if count > 1 else ''}"
        watch = timing.Watch()
        most, by = arithmetic(dtype, runs)
        copy, memory = copy_rate(runs), bandwidth.rates(count, runs)
        _, disturbed = watch.foreign()
        found.append(Ceiling(of, most, by, copy, memory, disturbed))
    torch.set_num_threads(threads)
    return found


def gpu_ceilings(dtype: torch.dtype, runs: int) -> list[Ceiling]:
    """The most that the GPU reaches, its products in the precision that torch is set to."""
    a = torch.randn(8192, 8192, device="cuda", dtype=dtype)
    product = 2.0 * 8192**3 / fastest(lambda: a @ a, runs, clocks.cuda)
    copy = copy_rate(runs, "cuda", clocks.cuda)
    return [Ceiling("the GPU", product, "matrix product", copy, [(2 * COPIED["cuda"], copy)])]


def fastest(function: Callable[[], object], runs: int, clock: clocks.Clock = clocks.cpu) -> float:
    """Seconds of the fastest run, which is what the machine can do."""
    function()
    return min(clock(function) for _ in range(runs))


@torch.no_grad()
def arithmetic(dtype: torch.dtype, runs: int) -> tuple[float, str]:
    """The highest rate of multiplications and additions of several programs that have nothing
    else to do: a matrix product, and a convolution of many channels by torch and by the direct
    kernel here. No program shows the peak itself; this comes as near as one of them does.
    """
    a = torch.randn(1024, 1024, dtype=dtype)
    weight = torch.randn(256, 256, 3, 3, dtype=dtype)
    picture = torch.randn(16, 256, 14, 14, dtype=dtype).contiguous(
        memory_format=torch.channels_last
    )
    product, convolution = 2.0 * 1024**3, 2.0 * 16 * 14**2 * 256 * 256 * 9
    with bp.backends.cpu.flags(conv_algorithm="direct"):
        rates = {
            "matrix product": product / fastest(lambda: a @ a, runs),
            "torch's convolution": convolution
            / fastest(lambda: F.conv2d(picture, weight, padding=1), runs),
            "torch_convbp's direct convolution": convolution
            / fastest(lambda: bp.functional.conv2d(picture, weight, padding=1), runs),
        }
    by = max(rates, key=lambda name: rates[name])
    return rates[by], by


def copy_rate(runs: int, device: str = "cpu", clock: clocks.Clock = clocks.cpu) -> float:
    """Bytes a second of copying a large tensor: read and written, each counted."""
    source = torch.ones(COPIED[device] // 4, device=device)
    target = torch.ones(COPIED[device] // 4, device=device)
    return 2 * COPIED[device] / fastest(lambda: target.copy_(source), runs, clock)
