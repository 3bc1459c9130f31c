"""What `python -m torch_convbp.info` says, above all of a package that does not load."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import torch_convbp as bp
from torch_convbp import _probe, info

PACKAGE = Path(bp.__file__).parent


def run(
    folder: Path, *arguments: str, module: str = "torch_convbp.info", **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
    )


def says(folder: Path, status: int, **environment: str) -> info.Report:
    done = run(folder, "--json", **environment)
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with a copy of the package, without its libraries."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "torch_convbp", ignore=ignored)
    return tmp_path


def broken_torch(folder: Path, code: str) -> None:
    (folder / "torch.py").write_text(code)


def test_of_a_package_that_works() -> None:
    found = says(PACKAGE.parent, 0, OMP_NUM_THREADS="1", TORCH_CONVBP_CPU_CAPABILITY="DEFAULT")
    assert found["versions"]["torch_convbp"] == bp.__version__
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["python"].startswith(platform.python_version())
    assert found["libraries"]["_C"].endswith("so, loaded")
    assert found["libraries"]["_C_cuda"]
    assert found["in use"]["capability"] == "DEFAULT"
    assert found["in use"]["threads"] == "1"
    assert 0 <= float(found["in use"]["difference from torch (cpu)"]) < 1e-5
    environment = {"OMP_NUM_THREADS": "1", "TORCH_CONVBP_CPU_CAPABILITY": "DEFAULT"}
    assert environment.items() <= found["environment"].items()
    assert found["problems"] == {}
    if not torch.cuda.is_available():
        assert found["machine"]["gpus"].startswith("none: ")


def test_of_a_missing_library(copy: Path) -> None:
    """`import torch_convbp` fails, and its error names the program that says why."""
    failed = subprocess.run(
        [sys.executable, "-c", "import torch_convbp"], cwd=copy, capture_output=True, text=True
    )
    assert "`python -m torch_convbp.info` says what is here" in failed.stderr
    found = says(copy, 1)
    assert found["libraries"] == {
        "folder": str(copy / "torch_convbp"),
        "_C": "missing",
        "_C_cuda": "missing",
    }
    assert found["versions"]["torch"] == torch.__version__
    assert "library _C is missing" in found["problems"]["import torch_convbp"]
    assert "capability" not in found["in use"]


def test_of_a_library_that_does_not_load(copy: Path) -> None:
    library = copy / "torch_convbp" / "_C.so"
    library.write_text("no library")
    found = says(copy, 1)
    assert found["libraries"]["_C"] == f"{library}, not loaded"
    assert "_C.so does not load in torch" in found["problems"]["import torch_convbp"]


def test_of_kernels_that_this_processor_has_not() -> None:
    found = says(PACKAGE.parent, 1, TORCH_CONVBP_CPU_CAPABILITY="MMX")
    assert found["libraries"]["_C"].endswith("so, loaded")
    assert "expected DEFAULT" in found["problems"]["choose the kernels"]


# What torch does when it is imported: (the step that fails, a text of the report).
BROKEN = {
    "missing": (
        "raise ModuleNotFoundError(\"No module named 'torch'\")",
        "No module named 'torch'",
    ),
    "an illegal instruction": (
        "import os, signal; os.kill(os.getpid(), signal.SIGILL)",
        "ended by SIGILL",
    ),
    "a hang": ("import time; time.sleep(60)", "not finished after 1 s"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_of_a_torch_that_breaks(name: str, copy: Path) -> None:
    code, text = BROKEN[name]
    broken_torch(copy, code)
    source = copy / "torch_convbp" / "info.py"
    source.write_text(source.read_text().replace("PROBE_SECONDS = 300", "PROBE_SECONDS = 1"))
    found = says(copy, 1)
    assert text in found["problems"]["import torch"]
    assert found["versions"]["torch_convbp"] == bp.__version__
    assert found["machine"]["processor"]


def test_as_text(copy: Path) -> None:
    broken_torch(copy, "raise OSError('libcudart.so.13: cannot open shared object file')")
    done = run(copy)
    assert done.returncode == 1 and done.stderr == ""
    lines = done.stdout.splitlines()
    headings = [line for line in lines if not line.startswith(" ")]
    for heading in "versions", "machine", "build tools", "libraries", "in use", "environment":
        assert heading in headings
    assert f"  torch_convbp  {bp.__version__}" in lines
    assert "OSError: libcudart.so.13" in done.stdout


def test_arguments(copy: Path) -> None:
    done = run(copy, "--jason")
    assert done.returncode == 2 and "unrecognized arguments: --jason" in done.stderr
    assert run(copy, "--help").stdout.startswith("usage: python -m torch_convbp.info")


def test_only_when_asked(copy: Path) -> None:
    """Another program that imports the package, and has the name among its arguments."""
    broken_torch(copy, "")
    program = copy / "program"
    program.mkdir()
    (program / "__init__.py").write_text("import torch_convbp")
    (program / "__main__.py").touch()
    done = run(copy, "torch_convbp.info", module="program")
    assert done.returncode == 1 and done.stdout == ""
    assert "Error" in done.stderr


def test_a_wrong_result_is_seen() -> None:
    def conv2d(*tensors: torch.Tensor, **arguments: int) -> torch.Tensor:
        return 1.1 * torch.nn.functional.conv2d(*tensors, **arguments)

    wrong = SimpleNamespace(functional=SimpleNamespace(conv2d=conv2d))
    assert _probe.difference(torch, wrong, "cpu") > _probe.TOLERANCE
    assert _probe.difference(torch, bp, "cpu") < 1e-5


NVCC = {
    "a version": (
        "echo nvcc: Cuda compiler driver; echo Cuda compilation tools, release 13.0, V13.0.88",
        "Cuda compilation tools, release 13.0, V13.0.88",
    ),
    "no version": ("exit 3", "exit status 3"),
}


@pytest.mark.parametrize("name", NVCC)
def test_nvcc(name: str, tmp_path: Path, monkeypatch) -> None:
    script, expected = NVCC[name]
    program = tmp_path / "bin" / "nvcc"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert info.nvcc() == f"{program}: {expected}"
