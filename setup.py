"""Builds the compiled libraries of torch_convbp; everything else is in pyproject.toml.

Two libraries, because one linked against CUDA does not load in a CPU build of torch:

- torch_convbp/_C: the operator schemas and the CPU kernels, always built;
- torch_convbp/_C_cuda: the CUDA kernels, built where csrc/cuda holds sources, nvcc is found
  and its major version is that of torch. TORCH_CONVBP_CUDA=0 never builds it;
  TORCH_CONVBP_CUDA=1 fails where it cannot be built.

Both use the LibTorch stable ABI of torch 2.10 and the limited Python ABI alone: one wheel
serves every later torch and every Python >= 3.10.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"  # what every include of its files is relative to
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]
DEFAULT_CUDA_ARCHITECTURES = "8.0;9.0+PTX"
# tests/native/test_cuda_build.py compiles with them too.
NVCC_ARGS = ["-O3", "-std=c++20", "--expt-relaxed-constexpr"]


def is_cuda_home(path: Path) -> bool:
    return (path / "bin" / "nvcc").is_file() and (path / "include" / "cuda_runtime.h").is_file()


def find_cuda_home() -> Path | None:
    """The CUDA toolkit's folder, or None.

    ``which nvcc`` may name a wrapper script in a folder that is not the toolkit's, so nvcc
    itself is asked (its dry run prints the folder as TOP) before its path is trusted.
    """
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    nvcc = shutil.which("nvcc")
    if nvcc:
        dry_run = subprocess.run(
            [nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True
        )
        top = re.search(r"^#\$ TOP=(.+)$", dry_run.stderr, re.MULTILINE)
        candidates += [top.group(1).strip() if top else None, str(Path(nvcc).resolve().parents[1])]
    candidates += ["/usr/local/cuda", str(Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13")]
    for candidate in candidates:
        if candidate and is_cuda_home(Path(candidate).resolve()):
            return Path(candidate).resolve()
    return None


def nvcc_major(cuda_home: Path) -> int | None:
    version = subprocess.run(
        [str(cuda_home / "bin" / "nvcc"), "--version"], capture_output=True, text=True
    )
    found = re.search(r"release (\d+)\.", version.stdout)
    return int(found.group(1)) if found else None


def why_no_cuda(sources: list[str], cuda_home: Path | None, torch_cuda: str | None) -> str | None:
    """Why the CUDA library is not built; None where it is."""
    if os.environ.get("TORCH_CONVBP_CUDA") == "0":
        return "TORCH_CONVBP_CUDA=0"
    if not sources:
        return "csrc/cuda holds no sources"
    if torch_cuda is None:
        return "this torch is a CPU build"
    if cuda_home is None:
        return "no CUDA toolkit found (set CUDA_HOME)"
    if str(nvcc_major(cuda_home)) != torch_cuda.split(".")[0]:
        return f"nvcc {nvcc_major(cuda_home)} does not match torch's CUDA {torch_cuda}"
    return None


def sources_in(folder: str, *suffixes: str) -> list[str]:
    return sorted(
        str(path.relative_to(ROOT))
        for path in (CSRC / folder).rglob("*")
        if path.suffix in suffixes
    )


def check_tools() -> None:
    """Says what to install, where the compiler's or setuptools' own errors would not."""
    for package, least in (("setuptools", (77,)), ("torch", (2, 10))):
        wanted = f"{package} >= {'.'.join(map(str, least))}"
        try:
            found = version(package)
        except PackageNotFoundError:
            sys.exit(f"torch_convbp is built with {wanted}, but there is no {package} here")
        numbers = tuple(map(int, re.findall(r"\d+", found)[: len(least)]))
        if numbers < least:
            sys.exit(f"torch_convbp is built with {wanted}, but {package} {found} is here")


def main() -> None:
    check_tools()
    cuda_sources = sources_in("cuda", ".cpp", ".cu")
    wanted = cuda_sources and os.environ.get("TORCH_CONVBP_CUDA") != "0"
    cuda_home = find_cuda_home() if wanted else None
    if cuda_home:
        os.environ["CUDA_HOME"] = str(cuda_home)  # read when cpp_extension is imported
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_CUDA_ARCHITECTURES)

    import torch
    from setuptools import setup
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    headers = sorted(str(p.relative_to(ROOT)) for p in CSRC.rglob("*.*h"))
    # No code here asks which floating-point exceptions were raised; without them, both sides of a
    # choice may be computed, and loops become vector instructions.
    compile_args = ["-O3", "-std=c++20", "-fno-trapping-math", "-fno-math-errno"]
    compile_args += ["-fvisibility=hidden", "-Wall", "-g0", *STABLE_ABI]
    extensions = [
        CppExtension(
            "torch_convbp._C",
            sources_in("core", ".cpp") + sources_in("torch", ".cpp") + sources_in("cpu", ".cpp"),
            include_dirs=[str(CSRC)],
            depends=headers,
            extra_compile_args={"cxx": compile_args},
            py_limited_api=True,
        )
    ]
    reason = why_no_cuda(cuda_sources, cuda_home, torch.version.cuda)
    if reason is None:
        extensions.append(
            CUDAExtension(
                "torch_convbp._C_cuda",
                # Neither library sees the other's symbols: what both need is in both.
                [*sources_in("core", ".cpp"), "csrc/torch/checks.cpp", *cuda_sources],
                include_dirs=[str(CSRC)],
                depends=headers,
                extra_compile_args={
                    "cxx": [*compile_args, "-DUSE_CUDA"],
                    "nvcc": [*NVCC_ARGS, *STABLE_ABI],
                },
                py_limited_api=True,
            )
        )
    else:
        print(f"torch_convbp: building without CUDA: {reason}")
        if os.environ.get("TORCH_CONVBP_CUDA") == "1":
            sys.exit(f"TORCH_CONVBP_CUDA=1, but the CUDA library cannot be built: {reason}")

    setup(
        ext_modules=extensions,
        cmdclass={"build_ext": BuildExtension.with_options(no_python_abi_suffix=True)},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )


if __name__ == "__main__":
    main()
