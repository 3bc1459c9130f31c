"""CUDA as far as it can be seen without a GPU: what is said where kernels or GPU are missing.

With a GPU, the tests of ON_EVERY_DEVICE (conftest.py) run on it as well.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import torch_convbp as bp
from torch_convbp import extension
from torch_convbp.ops import conv2d as conv2d_ops
from torch_convbp.ops import elementwise as elementwise_ops
from torch_convbp.ops import pool2d as pool2d_ops

ROOT = Path(__file__).resolve().parents[2]

# A CUDA tensor cannot be made without a GPU, but the operators' CUDA kernels can be called.
CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
CALLS: dict[str, Callable[[Tensor], object]] = {
    "conv2d": lambda x: conv2d_ops.conv2d.redispatch(CUDA, x, x, None, [1, 1], [0] * 4, [1, 1], 1),
    "conv2d_input_grad": lambda x: conv2d_ops.conv2d_input_grad.redispatch(
        CUDA, [1, 1, 2, 2], x, x, [1, 1], [1] * 4, [1, 1], 1
    ),
    "conv2d_weight_grad": lambda x: conv2d_ops.conv2d_weight_grad.redispatch(
        CUDA, x, [1, 1, 2, 2], x, [1, 1], [1] * 4, [1, 1], 1
    ),
    "activation": lambda x: elementwise_ops.activation.redispatch(CUDA, x, "relu", []),
    "error_signal": lambda x: elementwise_ops.error_signal.redispatch(CUDA, x, x, "relu", []),
    "max_pool2d": lambda x: pool2d_ops.max_pool2d.redispatch(
        CUDA, x, [2, 2], [2, 2], [0, 0], [1, 1], False
    ),
    "avg_pool2d": lambda x: pool2d_ops.avg_pool2d.redispatch(
        CUDA, x, [2, 2], [2, 2], [0, 0], False, True, None
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_the_cuda_key_is_served(call: Callable[[Tensor], object]) -> None:
    """By the kernels, which refuse memory of the CPU, or by what says why there are none."""
    if extension.cuda_missing is None:
        with pytest.raises(RuntimeError, match="on another device than cuda"):
            call(torch.ones(1, 1, 2, 2))
    else:
        with pytest.raises(NotImplementedError, match="cannot run on CUDA here: "):
            call(torch.ones(1, 1, 2, 2))


@pytest.fixture
def without_cuda(tmp_path: Path) -> Callable[[str], str]:
    """Runs a script with a copy of the package that has no CUDA library."""
    shutil.copytree(
        ROOT / "torch_convbp",
        tmp_path / "torch_convbp",
        ignore=shutil.ignore_patterns("_C_cuda*", "__pycache__"),
    )

    def run(script: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, text=True, check=True,
            capture_output=True, env={**os.environ, "PYTHONPATH": str(tmp_path)},
        ).stdout  # fmt: skip

    return run


def test_a_missing_library_is_told(without_cuda: Callable[[str], str]) -> None:
    text = without_cuda("""
        import torch, torch_convbp as bp
        cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
        x = torch.ones(1, 1, 2, 2)
        calls = [
            lambda: torch.ops.torch_convbp.conv2d.default.redispatch(
                cuda, x, x, None, [1, 1], [0] * 4, [1, 1], 1),
            lambda: torch.ops.torch_convbp.max_pool2d.default.redispatch(
                cuda, x, [2, 2], [2, 2], [0, 0], [1, 1], False),
            lambda: bp.backends.cuda.conv_algorithm,
            lambda: setattr(bp.backends.cuda, "conv_algorithm", "plain"),
        ]
        print(bp.backends.cuda.is_available())
        for call in calls:
            try:
                call()
            except Exception as error:
                print(type(error).__name__, error)
    """)
    available, *errors = text.splitlines()
    missing = "it was built without its CUDA kernels (the library _C_cuda is missing)"
    assert available == "False"
    assert [line.split()[0] for line in errors] == ["NotImplementedError"] * 2 + [
        "RuntimeError"
    ] * 2
    assert all(missing in line for line in errors)


def test_the_switch() -> None:
    if extension.cuda_missing is not None:
        with pytest.raises(RuntimeError, match="there are no CUDA kernels here: "):
            bp.backends.cuda.conv_algorithm = "plain"
        return
    assert bp.backends.cuda.conv_algorithm == "auto"
    with bp.backends.cuda.flags(conv_algorithm="plain"):
        assert bp.backends.cuda.conv_algorithm == "plain"
    assert bp.backends.cuda.conv_algorithm == "auto"
    with pytest.raises(RuntimeError, match='to be one of auto, reference, but got "fast"'):
        bp.backends.cuda.conv_algorithm = "fast"
    with pytest.raises(TypeError, match="must be a str, not int"):
        bp.backends.cuda.conv_algorithm = 1
