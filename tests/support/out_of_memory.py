"""Run by test_resources.py: every operator with too little memory, then a bit more, until it runs.

The address space is bounded to what is in use and a spare. So each allocation fails once: of the
result, of a kernel's working space on the calling thread, on a thread of the parallel region.
Prints the messages of the errors for each operator; fails where an input has changed, a small call
does not work any more, or the call that runs in the end gives anything but what it gives in peace.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import torch_convbp as bp

f, o = bp.functional, torch.ops.torch_convbp
MIB = 2**20

ones, half = torch.ones, torch.float16
GEOMETRY = (1, 1), (0, 0, 0, 0), (1, 1), 1
WINDOWS = (2, 2), (1, 1), (0, 0), (1, 1), False

# name: (inputs, call). Results are small where the working space is to run out: packed filters
# and sums first, then on every thread a patch, as large as a pixel has channels.
CALLS: dict[str, tuple[Callable[[], tuple[Tensor, ...]], Callable[..., object]]] = {
    "conv2d": (
        lambda: (ones(1, 2**19, 1, 2, dtype=half), ones(1, 2**19, 1, 1, dtype=half)),
        lambda x, w: o.conv2d(x, w, None, *GEOMETRY),
    ),
    "conv2d, its result": (
        lambda: (ones(1, 1, 8, 8), ones(1, 1, 1, 1)),
        lambda x, w: o.conv2d(x, w, None, (1, 1), (700, 700, 700, 700), (1, 1), 1),
    ),
    "conv2d_activation": (
        lambda: (ones(1, 1, 8, 8), ones(1, 1, 1, 1)),
        lambda x, w: o.conv2d_activation(
            x, w, None, (1, 1), (700, 700, 700, 700), (1, 1), 1, "relu", []
        ),
    ),
    "conv2d_activation_pair": (
        lambda: (ones(1, 1, 8, 8), ones(1, 1, 1, 1)),
        lambda x, w: o.conv2d_activation_pair(
            x, w, None, (1, 1), (500, 500, 500, 500), (1, 1), 1, "silu", []
        ),
    ),
    "conv2d_input_grad": (
        lambda: (ones(2**19, 1, 1, 1, dtype=half), ones(1, 2**19, 1, 2, dtype=half)),
        lambda w, d: o.conv2d_input_grad([1, 1, 1, 2], w, d, *GEOMETRY),
    ),
    "conv2d_weight_grad": (
        lambda: (ones(2, 64, 3, 3, dtype=half), ones(2, 50, 3, 3, dtype=half)),
        lambda x, d: o.conv2d_weight_grad(x, [50, 64, 9, 9], d, (1, 1), (4, 4, 4, 4), (1, 1), 1),
    ),
    "conv2d_weight_bias_grad": (
        lambda: (ones(2, 2**18, 1, 1, dtype=half), ones(2, 8, 1, 1, dtype=half)),
        lambda x, d: o.conv2d_weight_bias_grad(x, [8, 2**18, 1, 1], d, *GEOMETRY),
    ),
    "conv2d_backward": (
        lambda: (ones(2, 2**18, 1, 1, dtype=half), ones(2**18, 1, 1, 1, dtype=half)),
        lambda x, w: o.conv2d_backward(
            x, x, x, w, x.shape, w.shape, *GEOMETRY[:3], 2**18, "relu", [], True
        ),
    ),
    "max_pool2d": (
        lambda: (ones(1).expand(2, 1, 1000, 1000),),
        lambda x: o.max_pool2d(x, *WINDOWS),
    ),
    "max_pool2d_input_grad": (
        lambda: (
            ones(1).expand(2, 1, 999, 999),
            ones(1, dtype=torch.uint8).expand(2, 1, 999, 999),
        ),
        lambda d, offset: o.max_pool2d_input_grad([2, 1, 1000, 1000], d, offset, *WINDOWS),
    ),
    "max_pool2d_gather": (
        lambda: (
            ones(1).expand(2, 1, 1000, 1000),
            ones(1, dtype=torch.uint8).expand(2, 1, 999, 999),
        ),
        lambda x, offset: o.max_pool2d_gather(x, offset, *WINDOWS),
    ),
    "avg_pool2d": (
        lambda: (ones(1).expand(1, 1, 2, 2**19),),
        lambda x: o.avg_pool2d(x, (1, 2), (1, 1), (0, 0), False, True, None),
    ),
    "avg_pool2d_input_grad": (
        lambda: (ones(1, dtype=half).expand(1, 1, 2, 2**19 - 1),),
        lambda d: o.avg_pool2d_input_grad(
            [1, 1, 2, 2**19], d, (1, 2), (1, 1), (0, 0), False, True, None
        ),
    ),
    "activation": (
        lambda: (ones(1).expand(1000, 1000),),
        lambda x: o.activation(x, "silu", []),
    ),
    "error_signal": (
        lambda: (ones(1).expand(1000, 1000),),
        lambda x: o.error_signal(x, x, "silu", []),
    ),
    "linear": (
        lambda: (ones(1024, 1), ones(1024, 1)),
        lambda x, w: o.linear(x, w, None),
    ),
    "error_signal_bias_grad": (
        lambda: (ones(1).expand(3, 2**20),),
        lambda x: o.error_signal_bias_grad(x, x, "silu", []),
    ),
}


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def sums(result: object) -> list[float]:
    parts = [result] if isinstance(result, Tensor) else result
    return [float(part.sum(dtype=torch.float64)) for part in parts]  # type: ignore[union-attr]


def small() -> float:
    return float(f.conv2d(ones(2, 3, 9, 9), ones(4, 3, 3, 3), padding=1).sum())


def run_out(name: str) -> list[str]:
    make, call = CALLS[name]
    torch.set_num_threads(2)
    inputs, expected_small = make(), small()  # the threads are there
    before, messages = sums(inputs), []
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    spare = MIB
    while True:
        resource.setrlimit(resource.RLIMIT_AS, (address_space() + spare, hard))
        try:
            result = call(*inputs)
            break
        except RuntimeError as error:
            messages.append(str(error).splitlines()[0])
            spare += max(MIB // 2, spare // 12)  # less than any of the pieces
            assert spare < 128 * MIB, messages
            assert small() == expected_small, spare
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
            assert sums(inputs) == before, spare
    assert sums(result) == sums(call(*inputs))
    return messages


def main() -> None:
    for name in CALLS:
        # A process each, whose threads have no working space yet. This one starts no threads.
        child = os.fork()
        if child == 0:
            print(json.dumps({name: run_out(name)}), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            sys.exit(f"{name}: status {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    main()
