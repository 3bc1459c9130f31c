"""Times of functions that run in turn, and whether others used the CPUs meanwhile."""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from experiments.speed.clocks import CLOCKS, Clock

STAT = Path("/proc/stat")
LEAST_SAMPLES = 5
WARM_UP = 2
ATTEMPTS = 3
# Share of our CPUs' time that others may use before a case counts as disturbed. The kernel counts
# in ticks; in a short case, a few ticks are more than this share.
FOREIGN_SHARE = 0.03
FOREIGN_TICKS = 3


@dataclass
class Spread:
    """Seconds of a call."""

    median: float
    first_quartile: float
    third_quartile: float
    samples: int
    page_faults: float  # of a call, on average

    @classmethod
    def of(cls, seconds: list[float], page_faults: int) -> Spread:
        if len(seconds) == 1:
            seconds = seconds * 2
        low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(middle, low, high, len(seconds), page_faults / len(seconds))


@dataclass
class Measured:
    spreads: dict[str, Spread]
    foreign_share: float | None  # of our CPUs' time; None where the system does not say
    disturbed: bool
    attempts: int = 1


class Watch:
    """CPU time that others spent on the CPUs of this process since the watch was made."""

    def __init__(self) -> None:
        self.wall, self.own, self.busy = time.perf_counter(), time.process_time(), busy_ticks()

    def foreign(self) -> tuple[float | None, bool]:
        """Share of our CPUs' time, and whether that is enough to disturb."""
        wall, own = time.perf_counter() - self.wall, time.process_time() - self.own
        now = busy_ticks()
        if now is None or self.busy is None:
            return None, False
        tick = 1 / os.sysconf("SC_CLK_TCK")
        seconds = max(0.0, (now - self.busy) * tick - own)
        share = seconds / (wall * len(os.sched_getaffinity(0)))
        return share, share > FOREIGN_SHARE and seconds > FOREIGN_TICKS * tick


def busy_ticks() -> int | None:
    """Ticks that our CPUs were not idle, by anyone's work or taken by the host; since boot."""
    try:
        lines = STAT.read_text().splitlines()
        ours = {f"cpu{cpu}" for cpu in os.sched_getaffinity(0)}
    except (OSError, AttributeError):
        return None
    total = 0
    for name, *ticks in (line.split() for line in lines):
        if name in ours:
            user, nice, system, _idle, _iowait, *rest = map(int, ticks)
            total += user + nice + system + sum(rest[:3])  # irq, softirq, steal
    return total or None


def measure(
    runs: Mapping[str, Callable[[], object]],
    prepare: Callable[[str], object],
    repeats: int,
    seconds: float,
    attempts: int = ATTEMPTS,
    device: str = "cpu",
) -> Measured:
    """Time all in turn, again while others disturb; the least disturbed attempt counts."""
    best: Measured | None = None
    for attempt in range(1, attempts + 1):
        taken = attempt_in_turn(runs, prepare, repeats, seconds, CLOCKS[device])
        if best is None or (taken.foreign_share or 0) < (best.foreign_share or 0):
            best = taken
        best.attempts = attempt
        if not taken.disturbed:
            break
    assert best is not None
    return best


def attempt_in_turn(
    runs: Mapping[str, Callable[[], object]],
    prepare: Callable[[str], object],
    repeats: int,
    seconds: float,
    clock: Clock,
) -> Measured:
    samples: dict[str, list[float]] = {side: [] for side in runs}
    faults = dict.fromkeys(runs, 0)
    for _ in range(WARM_UP):
        for side, run in runs.items():
            prepare(side)
            run()
    watch = Watch()
    for turn in range(repeats):
        if turn >= LEAST_SAMPLES and time.perf_counter() - watch.wall > seconds:
            break
        for side, run in runs.items():
            prepare(side)
            before = page_faults()
            samples[side].append(clock(run))
            faults[side] += page_faults() - before
    spreads = {side: Spread.of(samples[side], faults[side]) for side in runs}
    return Measured(spreads, *watch.foreign())


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def pin(threads: int) -> None:
    """Use as many CPUs as threads, where the system can say so."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)
