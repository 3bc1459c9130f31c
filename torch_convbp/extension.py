"""Finds and loads the compiled libraries.

``_C`` holds the operator schemas and the CPU kernels; without it the import
fails. ``_C_cuda`` holds the CUDA kernels; ``cuda_missing`` says why that library is missing.
"""

from __future__ import annotations

from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent
ASK = "`python -m torch_convbp.info` says what is here and what is missing."


def _begin() -> None:
    """Makes a second load fail: torch keeps registered derivatives and fake kernels for good."""
    operators = torch.ops.torch_convbp
    if hasattr(operators, "__import_begun"):
        raise ImportError(
            "torch_convbp: cannot be loaded more than once in a process: what it has registered "
            "with torch stays there. Its modules were removed from sys.modules, or a first import "
            "failed half-way."
        )
    setattr(operators, "__import_begun", True)


def find(name: str) -> Path | None:
    candidates = (FOLDER / f"{name}{suffix}" for suffix in (".abi3.so", ".so"))
    return next((path for path in candidates if path.is_file()), None)


def _load_cpu() -> None:
    library = find("_C")
    if library is None:
        raise ImportError(
            f"torch_convbp: the compiled library _C is missing in {FOLDER}. Build it with "
            f"`pip install --no-build-isolation -e .` in the source folder; or, if it was "
            f"installed without -e, run Python in another folder, where it is found instead. {ASK}"
        )
    try:
        torch.ops.load_library(library)
    except OSError as error:
        raise ImportError(
            f"torch_convbp: {library.name} does not load in torch {torch.__version__} "
            f"({error}). torch >= 2.10 is needed; rebuild with "
            "`pip install --no-build-isolation -e .` if the library was built for another machine. "
            + ASK
        ) from error


def _load_cuda() -> str | None:
    """Loads the CUDA library; returns why that is not possible, None where it is loaded."""
    library = find("_C_cuda")
    if library is None:
        return "it was built without its CUDA kernels (the library _C_cuda is missing)"
    if torch.version.cuda is None:
        return "this torch is a CPU build"
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return f"{library.name} does not load: {error}"
    return None


_load_cpu()
_begin()
cuda_missing: str | None = _load_cuda()
