"""``python -m torch_convbp.info``: what a report of a bug should carry.

Users need the report most where the package does not load. So this file needs only the standard
library; ``_probe.py`` does what may fail, hang or end the process, in its own process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
PROBE_SECONDS = 300
PACKAGES = ("torch", "torchvision", "lightning", "numpy", "onnxruntime", "onnxscript")
INSTRUCTION_SETS = ("avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16")
ENVIRONMENT = (
    "TORCH_CONVBP_CPU_CAPABILITY",
    "TORCH_CONVBP_CUDA",
    "TORCH_CUDA_ARCH_LIST",
    "CUDA_HOME",
    "CUDA_PATH",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_LAUNCH_BLOCKING",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "OMP_PROC_BIND",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "MKL_NUM_THREADS",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "CC",
    "CXX",
    "CXXFLAGS",
)

# Section -> name -> value.
Report = dict[str, dict[str, str]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; return 0 where the package loads and computes, 1 where not."""
    parser = argparse.ArgumentParser(
        prog="python -m torch_convbp.info", description="What a report of a bug should carry."
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    as_json = parser.parse_args(arguments).json
    found = report()
    print(json.dumps(found, indent=2) if as_json else as_text(found))
    return 1 if found["problems"] else 0


def report() -> Report:
    """The report by section; "problems" is empty where the package loads and computes."""
    found: Report = {
        "versions": versions(),
        "machine": machine(),
        "build tools": {"compiler": compiler(), "nvcc": nvcc()},
        "libraries": {"folder": str(FOLDER), "_C": library("_C"), "_C_cuda": library("_C_cuda")},
        "in use": {},
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "problems": {},
    }
    probe(found)
    return found


def as_text(found: Report) -> str:
    lines = []
    for section, facts in found.items():
        width = max(map(len, facts), default=0)
        lines += [section, *(f"  {name:{width}}  {value}" for name, value in facts.items())]
        lines += [] if facts else ["  none"]
    return "\n".join(lines)


def versions() -> dict[str, str]:
    found = {"torch_convbp": sys.modules[__package__ or "torch_convbp"].__version__}
    found["python"] = f"{platform.python_version()} ({sys.executable})"
    return found | {package: version_of(package) for package in PACKAGES}


def version_of(package: str) -> str:
    """The version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def machine() -> dict[str, str]:
    return {
        "system": platform.platform(),
        "processor": processor(),
        "instruction sets": instruction_sets(),
        "cpus": str(available_cpus()),
    }


def processor() -> str:
    """The model name of the processor."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def instruction_sets() -> str:
    """The instruction sets that decide the choice of kernels."""
    flags = _cpuinfo("flags").split()
    return " ".join(name for name in INSTRUCTION_SETS if name in flags) or "none of those asked for"


def _cpuinfo(key: str) -> str:
    """The first processor's value in /proc/cpuinfo; "" where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def available_cpus() -> int:
    """How many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def compiler() -> str:
    name = os.environ.get("CXX", "c++").split()[0]
    return _answer(shutil.which(name), "--version") or f"missing: no {name} on the path"


def nvcc() -> str:
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda"]
    inside = (shutil.which("nvcc", path=str(Path(home) / "bin")) for home in homes if home)
    path = next(filter(None, inside), None) or shutil.which("nvcc")
    said = _answer(path, "--version", having="release")
    return said or "missing: not in CUDA_HOME, CUDA_PATH or /usr/local/cuda, and not on the path"


def _answer(program: str | None, *arguments: str, having: str = "") -> str:
    """The program's path and the first line that it prints with ``having`` in it; "" for none."""
    if program is None:
        return ""
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{program}: {error}"
    lines = (line for line in done.stdout.splitlines() if having in line)
    return f"{program}: {next(lines, f'exit status {done.returncode}').strip()}"


def library(name: str) -> str:
    path = next(FOLDER.glob(f"{name}.*so"), None)
    return f"{path}, not loaded" if path else "missing"


def probe(found: Report) -> None:
    """Add the facts from a process that imports torch and the package, and how it failed."""
    # The new process must find the same modules as this one.
    program = (
        f"import runpy, sys; sys.path[:] = {sys.path!r}; "
        f"runpy.run_path({str(FOLDER / '_probe.py')!r}, run_name='__main__')"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=PROBE_SECONDS
        )
        said, errors, ended = done.stdout, done.stderr.strip(), _ended(done.returncode)
    except subprocess.TimeoutExpired as timeout:
        output = timeout.stdout or b""
        said = output if isinstance(output, str) else output.decode(errors="replace")
        errors, ended = "", f"not finished after {PROBE_SECONDS} s"
    step = "start"
    for line in said.splitlines():
        if line.startswith("{"):  # other lines are what imports print
            facts = json.loads(line)
            step = facts.pop("step", step)
            for section, more in facts.items():
                found[section].update(more)
    if ended:
        found["problems"][step] = f"{ended}\n{errors}".strip()


def _ended(status: int) -> str:
    """How a process ended; "" where it ended well."""
    if status >= 0:
        return f"exit status {status}" if status else ""
    try:
        return f"ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"ended by signal {-status}"


if __name__ == "__main__":
    sys.exit(main())
