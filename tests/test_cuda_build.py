"""What nvcc makes of the CUDA kernels: for every architecture that setup.py names, no register is
spilled to memory, and no kernel takes more registers than stated here."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
CUDA = ROOT / "csrc" / "cuda"
ARCHITECTURES = ("80", "90")

# Registers a thread: file, kernel (a pattern of its mangled name): most. A multiprocessor has
# 65536: 255 for 256 threads, or 168 for three blocks of 128, which hide each other's waiting.
BUDGETS = {
    "implicit_gemm_bfloat16": {
        "convolve.*Lb1E": 184,  # element by element
        "convolve|weight_grad": 168, "pack|add_pieces": 64,
    },
    "implicit_gemm_float16": {
        "convolve.*Lb1E": 184,  # element by element
        "convolve|weight_grad": 168, "pack|add_pieces": 64,
    },
    "implicit_gemm_float32": {
        "convolve.*Tf32": 216, "weight_grad.*Tf32": 216,
        "convolve.*ByMultiplyAdd": 255, "weight_grad.*ByMultiplyAdd": 176,
        "pack|add_pieces": 64,
    },
    "implicit_gemm_float64": {
        "convolve": 192, "weight_grad": 184, "pack|add_pieces": 64,
    },
    "depthwise": {"": 136}, "depthwise_weight_grad": {"": 144},
    "plain": {"": 128}, "pool": {"": 96}, "elementwise": {"": 64},
}  # fmt: skip


@pytest.fixture(scope="module")
def setup_py() -> ModuleType:
    """setup.py as a module: importing it builds nothing."""
    spec = importlib.util.spec_from_file_location("convbp_setup", ROOT / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kernels_in(report: str) -> dict[str, tuple[int, int]]:
    """Mangled name: (registers, bytes of spills and stack)."""
    found = {}
    for part in report.split("Compiling entry function ")[1:]:
        name = part.split("'")[1]
        registers = re.search(r"Used (\d+) registers", part)
        spills = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part
        )
        assert registers and spills, part
        found[name] = (int(registers[1]), sum(map(int, spills.groups())))
    return found


def test_every_source_has_a_budget() -> None:
    launchers = {path.stem for path in CUDA.glob("*.cu") if "launch(" in path.read_text()}
    launchers |= {path.stem for path in CUDA.glob("implicit_gemm_*.cu")}
    assert launchers == set(BUDGETS)


@pytest.mark.slow
@pytest.mark.parametrize("source", BUDGETS)
def test_registers(setup_py: ModuleType, tmp_path: Path, source: str) -> None:
    home = setup_py.find_cuda_home()
    nvcc = str(home / "bin" / "nvcc") if home else shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no CUDA toolkit found: nvcc is needed")
    include = Path(torch.__file__).parent / "include"
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    done = subprocess.run(
        [nvcc, *setup_py.NVCC_ARGS, *setup_py.STABLE_ABI, f"-I{include}", *targets,
         "-Xptxas", "-v", "-c", str(CUDA / f"{source}.cu"), "-o", str(tmp_path / "object")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kernels = kernels_in(done.stderr)
    assert kernels
    wrong = []
    for name, (registers, spilled) in kernels.items():
        budget = next(most for kind, most in BUDGETS[source].items() if re.search(kind, name))
        if spilled or registers > budget:
            wrong.append(f"{name}: {registers} registers of {budget}, {spilled} bytes spilled")
    assert not wrong, "\n".join(wrong)
