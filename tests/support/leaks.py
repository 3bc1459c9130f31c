"""Run by test_compatibility_memory.py: what is left of many forward and backward passes.

Prints, for each layer and way of use, by how much the resident memory and the number of tensors
have grown from the middle of the passes to their end.
"""

from __future__ import annotations

import ctypes
import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from layers import LAYERS
from torch import Tensor, nn

import torch_convbp as bp


def backward(layer: nn.Module, x: Tensor) -> None:
    layer(x).sum().backward()


def twice(layer: nn.Module, x: Tensor) -> None:
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    grad.square().sum().backward()


def for_each_sample(layer: nn.Module, x: Tensor) -> None:
    parameters = dict(layer.named_parameters())

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, (sample.unsqueeze(0),)).sum()

    torch.vmap(torch.func.grad(loss, (0, 1)), (None, 0))(parameters, x.detach())


def recorded(layer: nn.Module, x: Tensor) -> None:
    with bp.record_error_signals(layer):
        layer(x).sum().backward()


kept: list[Tensor] = []


def leaking(layer: nn.Module, x: Tensor) -> None:
    kept.append(layer(x))


# name: (a pass, how many)
WAYS: dict[str, tuple[Callable[[nn.Module, Tensor], None], int]] = {
    "backward": (backward, 2000),
    "second derivatives": (twice, 400),
    "a gradient for each sample": (for_each_sample, 100),
    "recorded error signals": (recorded, 200),
}


def resident() -> int:
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def growth(
    layer: nn.Module, x: Tensor, a_pass: Callable[[nn.Module, Tensor], None], passes: int
) -> tuple[int, int]:
    before = (0, 0)
    for number in range(passes + 1):
        if number == passes // 2:  # all that is kept once and for all is there
            before = tensors(), resident()
        a_pass(layer, x)
        layer.zero_grad(set_to_none=True)
        x.grad = None
    return tensors() - before[0], resident() - before[1]


def measured() -> Iterator[tuple[str, str, int, int, int]]:
    torch.set_num_threads(1)
    for name, layer in LAYERS.items():
        for way, (a_pass, passes) in WAYS.items():
            module, x = layer.make(torch.float32), layer.input(dtype=torch.float32)
            yield name, way, passes // 2, *growth(module, x.requires_grad_(), a_pass, passes)
    module, x = LAYERS["conv2d"].make(torch.float32), LAYERS["conv2d"].input(dtype=torch.float32)
    yield "conv2d", "leaking", 1000, *growth(module, x, leaking, 2000)


if __name__ == "__main__":
    for line in measured():
        print(json.dumps(line), flush=True)
