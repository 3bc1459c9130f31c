"""Bytes a second that the CPUs move at most, by the size of the working set, measured.

The C library's memcpy, memset and memcmp copy, write and read, each thread a part of its own. They
store large blocks past the caches (non-temporal), which torch's copy does not: a line that is
written whole need not be read first.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch

SIZES = [1 << shift for shift in range(18, 29, 2)]  # bytes, from any cache's to beyond any
LEAST = 1 << 26  # bytes a sample moves, so that starting its threads does not count


def rates(threads: int, runs: int) -> list[tuple[int, float]]:
    """The highest rate of all programs for each size of the working set.

    Written bytes count, and read ones. What a larger set reaches, a smaller one does too.
    """
    found: list[tuple[int, float]] = []
    for size in reversed(SIZES):
        block = torch.ones(size, dtype=torch.uint8)
        calls = programs(block.data_ptr(), size, threads)
        for call in calls:
            rate(call, size, threads)  # warms up
        reached = max(rate(call, size, threads) for call in calls for _ in range(runs))
        found.append((size, max(reached, found[-1][1] if found else 0.0)))
    return found[::-1]


def programs(start: int, size: int, threads: int) -> list[Callable[[int], object]]:
    """What a thread does: functions of its number."""
    libc = ctypes.CDLL(None)  # a call lets other threads run Python meanwhile
    libc.memcpy.argtypes = libc.memcmp.argtypes = (
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_size_t,
    )
    libc.memset.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    part, half = size // threads, size // 2 // threads
    first = [start + thread * part for thread in range(threads)]
    return [
        lambda thread: libc.memcpy(first[thread] + half, first[thread], half),
        lambda thread: libc.memcmp(first[thread] + half, first[thread], half),
        lambda thread: libc.memset(first[thread], 1, part),
    ]


def rate(call: Callable[[int], object], size: int, threads: int) -> float:
    """Bytes a second of all threads together, each repeating its call."""
    times = max(1, LEAST // size)
    gate = Barrier(threads)

    def work(thread: int) -> tuple[float, float]:
        gate.wait()
        start = time.perf_counter()
        for _ in range(times):
            call(thread)
        return start, time.perf_counter()

    with ThreadPoolExecutor(threads) as pool:
        starts, ends = zip(*pool.map(work, range(threads)), strict=True)
    return times * size / (max(ends) - min(starts))
