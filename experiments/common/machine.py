"""What the run ran on: versions and machine, for summary.json and the report."""

from __future__ import annotations

import os
import platform

from experiments.common.arguments import available_cpus

PACKAGES = ("torch", "torchvision", "lightning", "numpy", "scikit-learn", "matplotlib")


def versions() -> dict[str, str]:
    """Return the versions of Python and the packages that matter."""
    import torch_convbp as bp
    from torch_convbp.info import version_of

    found = {"python": platform.python_version(), "torch_convbp": bp.__version__}
    return found | {package: version_of(package) for package in PACKAGES}


def machine(threads: int) -> dict[str, str | int | float]:
    """Return the processor, what torch_convbp found in it, and the system."""
    import torch_convbp as bp
    from torch_convbp.info import processor

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": processor(),
        "cpus": available_cpus(),
        "threads": threads,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "not set"),
        "capability": bp.backends.cpu.capability(),
        "memory_gib": round(memory / 2**30, 1),
        "system": platform.platform(),
    }


def cuda_missing() -> str | None:
    """Return why torch_convbp computes on no GPU here; None where it does."""
    from torch_convbp import backends, extension

    if extension.cuda_missing is None and not backends.cuda.is_available():
        return "there is no GPU"
    return extension.cuda_missing
