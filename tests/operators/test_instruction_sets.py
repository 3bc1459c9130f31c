"""The exact tests on each instruction set: it is chosen once in a process, so each has its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import torch_convbp as bp

CAPABILITIES = (
    "DEFAULT",
    "AVX2",
    "AVX512",
    "AVX512_BF16",
)  # each includes those before it; one that is added is tested
FILES = [str(Path(__file__).with_name(name)) for name in ("test_exact.py", "test_exact_pools.py")]


def run(capability: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TORCH_CONVBP_CPU_CAPABILITY": capability}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True
    )


def run_tests(capability: str, selection: str) -> None:
    """Those of FILES, unless this process runs them on that instruction set."""
    here = bp.backends.cpu.capability()
    if CAPABILITIES.index(capability) > CAPABILITIES.index(here):
        pytest.skip(f"this processor, or this process, is held to {here}")
    done = run(capability, "-c", "import torch_convbp as bp; print(bp.backends.cpu.capability())")
    assert done.stdout.strip() == capability, done.stderr
    if capability != here:
        done = run(capability, "-m", "pytest", "-q", "-p", "no:cacheprovider", *FILES,
                   "-k", selection)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_each_instruction_set(capability: str) -> None:
    run_tests(capability, "ragged and (float32 or bfloat16) and not plain")


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_grid_on_each_instruction_set(capability: str) -> None:
    run_tests(capability, "test_grid and not plain")


def test_unknown_instruction_set_is_an_error() -> None:
    done = run("AVX9", "-c", "import torch_convbp as bp; bp.backends.cpu.capability()")
    assert done.returncode != 0
    assert "TORCH_CONVBP_CPU_CAPABILITY: expected DEFAULT" in done.stderr
    assert "AVX9" in done.stderr
