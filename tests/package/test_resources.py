"""Too large, too little memory, broken off: what does not fit is refused by arithmetic, what is
not there is an error after which everything works on, and Ctrl-C ends a run cleanly."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from twins import OPERATOR_NAMES

import torch_convbp as bp

ROOT = Path(__file__).resolve().parents[2]
MOST = 2**31 - 1
f, o = bp.functional, torch.ops.torch_convbp


def large(device: str, *size: int) -> Tensor:
    """A tensor of any size that takes no memory."""
    return torch.ones(1, device=device).expand(size)


# --- sizes -------------------------------------------------------------------------------------

WINDOWS = ((2, 2), (1, 1), (0, 0), (1, 1), False)

# name: (call on a device, text). The sizes are beyond any memory, or overflow 64 bits.
BEYOND: dict[str, tuple[Callable[[Callable[..., Tensor]], Any], str]] = {
    "batch": (lambda x: f.conv2d(x(2**44, 3, 8, 8), x(4, 3, 3, 3)), "the output of size"),
    "groups": (lambda x: f.conv2d(x(2, 3, 8, 8), x(4, 3, 3, 3), groups=2**62),
        "Given groups=4611686018427387904"),
    "dilation": (lambda x: f.conv2d(x(1, 1, 3, 3), x(1, 1, 3, 3), dilation=MOST),
        r"Kernel size: \(4294967295 x 4294967295\)"),
    "weight": (lambda x: f.conv2d(x(1, 1, 2**32, 1), x(1, 1, 2**31, 1)), "weight is too large"),
    "activation_in_conv2d": (lambda x: f.conv2d(x(2**44, 3, 8, 8), x(4, 3, 3, 3),
        activation="silu"), "the output of size"),
    "input_grad": (lambda x: o.conv2d_input_grad([1, 1, 2**45, 2**45], x(1, 1, 1, 1),
        x(1, 1, 2**14 + 1, 2**14 + 1), (MOST, MOST), (0, 0, 0, 0), (1, 1), 1),
        r"the result of size \[1, 1, 35184372088832, 35184372088832\] would not fit"),
    "weight_grad": (lambda x: o.conv2d_weight_grad(x(1, MOST, 1, 1), [MOST, MOST, 1, 1],
        x(1, MOST, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1), "the result of size"),
    "weight_bias_grad_in_groups": (lambda x: o.conv2d_weight_bias_grad(x(1, MOST, 1, 1),
        [MOST, 1, 2**20, 2**20], x(1, MOST, 1, 1), (1, 1), (0, 2**20 - 1, 0, 2**20 - 1), (1, 1),
        MOST), "the result of size"),
    "max_pool": (lambda x: o.max_pool2d(x(2**40, 3, 2**10, 2**10), *WINDOWS), "the result of"),
    "max_pool_kernel": (lambda x: f.max_pool2d(x(1, 1, 8, 8), 2**20), "kernel_size is too large"),
    "max_pool_stride": (lambda x: f.max_pool2d(x(1, 1, 8, 8), 2, 2**40), "stride is too large"),
    "avg_pool": (lambda x: f.avg_pool2d(x(2**40, 3, 2**10, 2**10), 2, 1), "the result of size"),
    "avg_pool_padding": (lambda x: f.avg_pool2d(x(1, 1, 8, 8), 2, padding=2**30), "pad should be"),
    "avg_pool_input_grad": (lambda x: o.avg_pool2d_input_grad([1, 1, 2**45, 2**45],
        x(1, 1, 2**14 + 1, 2**14 + 1), (1, 1), (MOST, MOST), (0, 0), False, True, None),
        "the result of size"),
    "activation": (lambda x: o.activation(x(2**30, 2**30), "relu", []), "the result of size"),
    "error_signal": (lambda x: o.error_signal(x(2**30, 2**30), x(2**30, 2**30), "relu", []),
        "the result of size"),
    "error_signal_bias_grad": (lambda x: o.error_signal_bias_grad(x(2**30, 2**30),
        x(2**30, 2**30), "relu", []), "the result of size"),
    "vmap_of_inputs": (lambda x: torch.vmap(f.conv2d, (0, None))(x(2**40, 2, 3, 8, 8),
        x(4, 3, 3, 3)), "the output of size"),
    "vmap_of_filters": (lambda x: torch.vmap(f.conv2d)(x(2**30, 2, 3, 8, 8),
        x(2**30, 4, 3, 3, 3)), "weight is too large"),
    "vmap_of_a_pool": (lambda x: torch.vmap(lambda a: f.avg_pool2d(a, 2, 1))(
        x(2**30, 2**10, 3, 2**10, 2**10)), "the result of size"),
}  # fmt: skip


@pytest.mark.parametrize("name", BEYOND)
def test_what_cannot_fit_is_refused_before_anything_is_allocated(name: str, capfd) -> None:
    """By the same words for real and for fake tensors; the allocator is never asked."""
    call, text = BEYOND[name]
    messages = []
    for device in ("cpu", "meta"):
        with pytest.raises(RuntimeError, match=text) as raised:
            call(lambda *size, d=device: large(d, *size))
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    assert "allocate" not in messages[0] and "allocate" not in capfd.readouterr().err


# --- memory ------------------------------------------------------------------------------------


def test_out_of_memory_is_an_error_and_nothing_worse() -> None:
    """Wherever memory runs out, a parallel region included: out_of_memory.py says what is held."""
    # Memory goes back at once, so that what is in use is known.
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "support" / "out_of_memory.py")],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    messages: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        messages.update(json.loads(line))
    assert {name.partition(",")[0] for name in messages} == OPERATOR_NAMES
    of_kernels = "can't allocate memory for the working space of a kernel"
    for name, found in messages.items():
        assert found, f"{name} never ran out of memory"
        for message in found:
            if name == "linear":  # whose product is torch's
                assert "DefaultCPUAllocator: can't allocate memory" in message
                continue
            assert message == of_kernels or re.fullmatch(
                r"can't allocate memory: the result of size \[.*\] takes .* bytes", message
            ), (name, message)
    for name in ("conv2d", "conv2d_input_grad", "conv2d_weight_bias_grad", "avg_pool2d",
                 "avg_pool2d_input_grad", "error_signal_bias_grad"):  # fmt: skip
        assert of_kernels in messages[name]


# --- breaking off ------------------------------------------------------------------------------


def start(script: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


INTERRUPTED = {
    # One call of some tenths of a second: Python hears of the signal when the kernel returns.
    "kernel": """
        x, w = torch.ones(8, 64, 96, 96), torch.ones(64, 64, 3, 3)
        print("ready", flush=True)
        while True:
            f.conv2d(x, w, padding=1)
    """,
    "training": """
        layer = bp.ConvBP2d(16, 32, 3, padding=1, activation="silu")
        optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
        x = torch.ones(8, 16, 48, 48)
        print("ready", flush=True)
        while True:
            optimizer.zero_grad()
            layer(x).square().mean().backward()
            optimizer.step()
    """,
}


@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_interrupt_is_a_keyboard_interrupt(name: str) -> None:
    """Python's own end of a program, and no crash; a program that catches it computes on."""
    script = "import torch, torch_convbp as bp\nf = bp.functional\ntry:\n"
    script += textwrap.indent(textwrap.dedent(INTERRUPTED[name]), "    ")
    script += (
        "\nexcept KeyboardInterrupt:\n"
        "    assert f.conv2d(torch.ones(1, 2, 4, 4), torch.ones(1, 2, 3, 3)).sum() == 4 * 18\n"
        "    print('works on', flush=True)\n"
        "    raise\n"
    )
    process = start(script)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert out == "works on\n"
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert process.returncode == -signal.SIGINT  # which a shell calls 130
