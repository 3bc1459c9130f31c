"""How long a call takes, on each kind of device."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TypeAlias

import torch

Clock: TypeAlias = Callable[[Callable[[], object]], float]


def cpu(run: Callable[[], object]) -> float:
    """Seconds from the call to its return."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@functools.cache
def _larger_than_the_cache() -> torch.Tensor:
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return torch.empty(2 * cache, dtype=torch.int8, device="cuda")


def cuda(run: Callable[[], object]) -> float:
    """Seconds between two events around the call's work on the current stream.

    First, memory is written that drives everything else out of the second-level cache. The GPU
    takes longer for that than the CPU for the first launches. So the time of launches shows only
    where a call has so many and so small kernels that the GPU waits for them.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _larger_than_the_cache().zero_()
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


CLOCKS: dict[str, Clock] = {"cpu": cpu, "cuda": cuda}
