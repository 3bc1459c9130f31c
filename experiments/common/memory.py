"""Peak memory of this process, counted from a chosen moment where the system allows that."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

CLEAR = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


class PeakMemory:
    """Highest resident memory since this object was made, and what was resident then.

    Linux keeps the high-water mark VmHWM, and writing 5 to clear_refs sets it back to the present
    size. Where that is not possible, the mark covers the whole life of the process
    (``ru_maxrss``), which ``method`` then says.
    """

    def __init__(self) -> None:
        try:
            CLEAR.write_text("5")
            self.start_bytes = status_bytes("VmRSS")
            self.method = "VmHWM, set back at the first step"
        except OSError:
            self.start_bytes = maxrss_bytes()
            self.method = "ru_maxrss of the whole process"

    def peak_bytes(self) -> int:
        """Return the peak so far."""
        if self.method.startswith("VmHWM"):
            return status_bytes("VmHWM")
        return maxrss_bytes()


class PeakMemoryOfGPU(PeakMemory):
    """Highest memory that torch has allocated on a GPU since this object was made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        torch.cuda.reset_peak_memory_stats(device)
        self.start_bytes = torch.cuda.memory_allocated(device)
        self.method = "torch.cuda.max_memory_allocated"

    def peak_bytes(self) -> int:
        """Return the peak so far."""
        return torch.cuda.max_memory_allocated(self.device)


def peak_memory(device: torch.device) -> PeakMemory:
    """Start watching the memory in which training on ``device`` takes place."""
    return PeakMemoryOfGPU(device) if device.type == "cuda" else PeakMemory()


def status_bytes(field: str) -> int:
    """Return one of the sizes in /proc/self/status, which are given in KiB."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{STATUS} has no {field}")


def maxrss_bytes() -> int:
    """Return ``ru_maxrss``, which macOS counts in bytes and Linux in KiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
