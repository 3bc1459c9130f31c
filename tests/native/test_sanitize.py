"""The kernels under sanitizers (`make sanitize`), and that these see what is wrong.

A kernel that is told a lie about its tensors does what a kernel with a mistake would do: read or
write one element behind the end, overflow, write where another thread writes, or compute another
convolution.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

# lie: (sanitizer, what is printed)
LIES = {
    "read": ("address", r"AddressSanitizer: heap-buffer-overflow[\s\S]*READ of size 4"),
    "write": ("address", r"AddressSanitizer: heap-buffer-overflow[\s\S]*WRITE of size 4"),
    "overflow": ("address", r"runtime error: signed integer overflow"),
    "result": ("address", r"FAILED: conv2d: \d+ of 320 elements differ"),
    "race": ("thread", r"ThreadSanitizer: data race[\s\S]*store_tile"),
}

pytestmark = pytest.mark.slow  # each of the two builds takes more than a minute


@pytest.fixture(scope="module", params=["address", "thread"])
def kernels(request: pytest.FixtureRequest) -> Path:
    """The program, built with a sanitizer."""
    kind = request.param
    compiler = os.environ.get("CXX", "g++")
    if not (shutil.which("make") and shutil.which(compiler)):
        pytest.skip(f"make and {compiler} are needed")
    probe = subprocess.run(
        [compiler, f"-fsanitize={kind}", "-x", "c++", "-", "-o", os.devnull],
        input="int main() {}", capture_output=True, text=True,
    )  # fmt: skip
    if probe.returncode:
        pytest.skip(f"{compiler} does not link with -fsanitize={kind}: {probe.stderr[-200:]}")
    include = Path(torch.__file__).parent / "include"
    subprocess.run(
        ["make", "-s", "-C", str(ROOT / "tests" / "native" / "sanitize"),
         f"TORCH_INCLUDE={include}", f"KIND={kind}", f"CXX={compiler}", "build"],
        check=True,
    )  # fmt: skip
    return ROOT / "build" / "sanitize" / kind / "kernels"


def run(program: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), *arguments], env={**os.environ, **environment},
        capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("capability", ["DEFAULT", "AVX2"])
def test_nothing_is_wrong(kernels: Path, capability: str) -> None:
    if capability == "AVX2" and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this processor has no AVX2")
    done = run(kernels, "25", TORCH_CONVBP_CPU_CAPABILITY=capability)
    assert done.returncode == 0, done.stderr
    assert re.match(rf"{capability}: \d\d\d\d comparisons on 25 .*all equal", done.stdout)


@pytest.mark.parametrize(
    ("kernels", "lie"), [(kind, lie) for lie, (kind, _) in LIES.items()], indirect=["kernels"]
)
def test_a_lie_is_noticed(kernels: Path, lie: str) -> None:
    _, text = LIES[lie]
    done = run(kernels, "--lie", lie)
    assert done.returncode != 0
    assert re.search(text, done.stderr), done.stderr
