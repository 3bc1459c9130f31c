"""What nvcc made of the CUDA kernels, read from the library that was built.

For every architecture that it is compiled for, no kernel keeps anything in memory for want of
registers, and none takes more of them than stated here.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import torch_convbp
from torch_convbp import extension

LIBRARY = Path(torch_convbp.__file__).with_name("_C_cuda.so")
ARCHITECTURES = {"sm_80", "sm_90"}

# Registers a thread: a pattern of the kernel's mangled name, the first that fits: most. A
# multiprocessor has 65536: 255 for 256 threads or two blocks of 128, or 168 for three of them,
# which hide each other's waiting.
BUDGETS = {
    "gemm.*(pack|reduce_splits)": 64,
    "gemm.*OnTensorCores.*Li128ELi128E": 255,
    "gemm.*Tf32": 216,
    "convolve.*ByMultiplyAddIf": 255, "weight_grad.*ByMultiplyAddIf": 176,
    "convolve.*ByMultiplyAddId": 192, "weight_grad.*ByMultiplyAddId": 184,
    "gemm.*(convolve|weight_grad)": 168,
    "depthwise.*backward": 216, "depthwise": 152, "reference": 128, "pool": 96,
    "activate|error_signal|sum_of_splits": 64,
}  # fmt: skip


def cuobjdump() -> str:
    """The tool that reads the library: the toolkit's, or the one that comes with triton."""
    found = shutil.which("cuobjdump")
    triton = importlib.util.find_spec("triton")
    if found is None and triton and triton.origin:
        found = shutil.which("cuobjdump", path=Path(triton.origin).parent / "backends/nvidia/bin")
    return found or pytest.skip("no cuobjdump found, neither the toolkit's nor triton's")


@pytest.fixture(scope="module")
def usage() -> list[tuple[str, str, dict[str, int]]]:
    """Architecture, mangled name, and what it uses, of every kernel."""
    if not LIBRARY.is_file():
        pytest.skip(f"there is no {LIBRARY.name}: {extension.cuda_missing}")
    done = subprocess.run(
        [cuobjdump(), "-res-usage", str(LIBRARY)], capture_output=True, text=True, check=True
    )
    found, architecture = [], ""
    for line in done.stdout.splitlines():
        if named := re.match(r"arch = (\w+)", line):
            architecture = named[1]
        elif named := re.match(r" Function (\w+):", line):
            name = named[1]
        elif "REG:" in line:
            used = {kind: int(count) for kind, count in re.findall(r"(\w+):(\d+)", line)}
            found.append((architecture, name, used))
    return found


def test_every_kernel_is_there_for_every_architecture(
    usage: list[tuple[str, str, dict[str, int]]],
) -> None:
    names = {
        wanted: {name for architecture, name, _ in usage if architecture == wanted}
        for wanted in ARCHITECTURES
    }
    assert names["sm_80"] == names["sm_90"] and len(names["sm_80"]) > 100
    idle = [
        pattern
        for pattern in BUDGETS
        if not any(re.search(pattern, name) for name in names["sm_80"])
    ]
    assert not idle, f"no kernel has this name: {idle}"


def test_no_kernel_runs_out_of_registers(usage: list[tuple[str, str, dict[str, int]]]) -> None:
    wrong = []
    for architecture, name, used in usage:
        budget = next((most for kind, most in BUDGETS.items() if re.search(kind, name)), 0)
        if used["STACK"] or used["LOCAL"] or used["REG"] > budget:
            wrong.append(f"{architecture}, {name}: {used} of {budget} registers")
    assert not wrong, "\n".join(wrong)
