"""What is built, and how setup.py finds its tools."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

import torch_convbp as bp

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def setup_py():
    """setup.py as a module: importing it builds nothing."""
    spec = importlib.util.spec_from_file_location("convbp_setup", ROOT / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_toolkit(folder: Path, version: str = "13.0") -> Path:
    """What looks like a CUDA toolkit."""
    (folder / "include").mkdir(parents=True)
    (folder / "include" / "cuda_runtime.h").touch()
    (folder / "bin").mkdir()
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = --version ]; then echo "Cuda compilation tools, release {version}, V0"; fi\n'
        f'if [ "$1" = --dryrun ]; then echo "#$ TOP={folder}" >&2; fi\n'
    )
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IEXEC)
    return folder


@pytest.fixture
def no_cuda_variables(monkeypatch):
    for name in ("CUDA_HOME", "CUDA_PATH", "TORCH_CONVBP_CUDA"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_cuda_home_from_the_environment(setup_py, tmp_path, no_cuda_variables) -> None:
    toolkit = make_toolkit(tmp_path / "cuda")
    no_cuda_variables.setenv("CUDA_HOME", str(toolkit))
    assert setup_py.find_cuda_home() == toolkit
    assert setup_py.nvcc_major(toolkit) == 13


def test_cuda_home_behind_a_wrapper_script(setup_py, tmp_path, no_cuda_variables) -> None:
    """The nvcc on the path is no part of the toolkit; the folder above it is not its home."""
    toolkit = make_toolkit(tmp_path / "cuda")
    wrapper = tmp_path / "bin" / "nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {toolkit}/bin/nvcc "$@"\n')
    wrapper.chmod(0o755)
    no_cuda_variables.setenv("PATH", f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}")
    assert setup_py.find_cuda_home() == toolkit


def test_a_wrong_cuda_home_is_not_believed(setup_py, tmp_path, no_cuda_variables) -> None:
    no_cuda_variables.setenv("CUDA_HOME", str(tmp_path))
    assert setup_py.find_cuda_home() != tmp_path


def test_reasons_for_building_without_cuda(setup_py, tmp_path, no_cuda_variables) -> None:
    toolkit = make_toolkit(tmp_path / "cuda", "12.8")
    why = setup_py.why_no_cuda
    assert why([], toolkit, "12.6") == "csrc/cuda holds no sources"
    assert why(["a.cu"], toolkit, None) == "this torch is a CPU build"
    assert "no CUDA toolkit found" in why(["a.cu"], None, "13.0")
    assert why(["a.cu"], toolkit, "13.0") == "nvcc 12 does not match torch's CUDA 13.0"
    assert why(["a.cu"], toolkit, "12.6") is None
    no_cuda_variables.setenv("TORCH_CONVBP_CUDA", "0")
    assert why(["a.cu"], toolkit, "12.6") == "TORCH_CONVBP_CUDA=0"


def library() -> Path:
    return next((ROOT / "torch_convbp").glob("_C.*so"))


def test_the_library_uses_stable_interfaces_alone() -> None:
    """No symbol of the Python interpreter and none of torch's C++ ABI: only C entry points."""
    if not shutil.which("nm"):
        pytest.skip("nm (binutils) is not installed")
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", str(library())], capture_output=True, text=True, check=True
    )
    names = [line.split()[-1] for line in listing.stdout.splitlines()]
    assert any(name.startswith("aoti_torch_") for name in names)
    python = [name for name in names if name.startswith(("Py", "_Py"))]
    cpp = [name for name in names if name.startswith(("_ZN2at", "_ZN3c10", "_ZN5torch", "_ZNK2at"))]
    assert not python and not cpp


def test_a_missing_library_says_how_to_build_it(tmp_path) -> None:
    shutil.copytree(
        ROOT / "torch_convbp", tmp_path / "torch_convbp", ignore=shutil.ignore_patterns("*.so")
    )
    done = subprocess.run(
        [sys.executable, "-c", "import torch_convbp"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "compiled library _C is missing" in done.stderr
    assert "pip install --no-build-isolation -e ." in done.stderr


def test_public_names() -> None:
    assert bp.__version__ == "0.1.0"
    for name in bp.__all__:
        assert hasattr(bp, name)
    if not torch.cuda.is_available():
        assert not bp.backends.cuda.is_available()
    with pytest.raises(AttributeError):
        bp.backends.cpu.conv_algoritm = "plain"
    for documented in (
        bp.ConvBP2d,
        bp.convert,
        bp.revert,
        *map(vars(bp.functional).get, bp.functional.__all__),
    ):
        assert "Raises:" in documented.__doc__


def test_the_source_archive_has_every_file(tmp_path) -> None:
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    script = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True)
    (archive,) = tmp_path.glob("torch_convbp-*.tar.gz")
    with tarfile.open(archive) as tar:
        inside = {name.partition("/")[2] for name in tar.getnames()}
    tracked = {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}
    assert tracked - inside == set()
    assert not [name for name in inside if name.endswith((".so", ".pyc"))]


def test_the_wheel_has_every_package() -> None:
    """pyproject.toml lists them by hand."""
    folders = (path.parent for path in (ROOT / "torch_convbp").rglob("__init__.py"))
    listed = re.search(r"^packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    assert listed
    assert set(re.findall(r'"([\w.]+)"', listed[1])) == {
        ".".join(folder.relative_to(ROOT).parts) for folder in folders
    }


@pytest.mark.slow
def test_wheel(tmp_path) -> None:
    """One abi3 wheel; it runs from a folder of its own."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps",
         "--wheel-dir", str(tmp_path), str(ROOT)],
        check=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith("torch_convbp-0.1.0-cp310-abi3-")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target",
         str(tmp_path / "site"), str(wheel)],
        check=True,
    )  # fmt: skip
    script = (
        "import torch, torch_convbp as bp; print(bp.__file__);"
        "print(bp.ConvBP2d(3, 4, 3)(torch.ones(1, 3, 5, 5)).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        cwd=tmp_path / "site", env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )  # fmt: skip
    assert str(tmp_path) in done.stdout
    assert "[1, 4, 3, 3]" in done.stdout
