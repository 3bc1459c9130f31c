"""Where our layers do otherwise than torch's on torch's own cases, and why: the only list of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import torch_convbp as bp

f = bp.functional


@dataclass(frozen=True)
class Deviation:
    """What torch does and what we do, with regular expressions of ``what_happens``."""

    torchs: Callable[[], Any]
    torch_says: str
    ours: Callable[[], Any]
    we_say: str
    why: str
    instead_of: str | None = None  # the text that torch's own table of errors expects


def what_happens(call: Callable[[], Any]) -> str:
    """The error, in a line, or what came out."""
    try:
        result = call()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    if isinstance(result, nn.Module):
        return "built"
    return f"{result.dtype} of size {list(result.shape)}"


def ones(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(size, dtype=dtype)


def both(name: str, *arguments: Any, **keywords: Any) -> dict[str, Callable[[], Any]]:
    return {
        "torchs": lambda: getattr(F, name)(*arguments, **keywords),
        "ours": lambda: getattr(f, name)(*arguments, **keywords),
    }


def gradient_after_indices_change(max_pool2d: Callable[..., Any]) -> torch.Tensor:
    input = ones(1, 1, 4, 4).requires_grad_()
    output, indices = max_pool2d(input, 2, return_indices=True)
    indices.zero_()
    return torch.autograd.grad(output.sum(), input)[0]


WHY_NO_INTEGERS = "integers overflow without a word, and have no gradients"
WHY_NO_COMPLEX = "L6 is the gradient of a real convolution; conv2d composes complex ones of it"

DEVIATIONS = {
    "conv2d of integers": Deviation(
        **both("conv2d", ones(1, 1, 3, 3, dtype=torch.int64), ones(1, 1, 2, 2, dtype=torch.int64)),
        torch_says=r"torch.int64 of size \[1, 1, 2, 2\]",
        we_say=r"RuntimeError: \"conv2d\" not implemented for 'Long'",
        why=WHY_NO_INTEGERS,
    ),
    "conv_transpose2d of complex numbers": Deviation(
        torchs=lambda: F.conv_transpose2d(*2 * [ones(1, 1, 2, 2, dtype=torch.cfloat)]),
        torch_says=r"torch.complex64 of size \[1, 1, 3, 3\]",
        ours=lambda: f.conv2d_input_grad((1, 1, 3, 3), *2 * [ones(1, 1, 2, 2, dtype=torch.cfloat)]),
        we_say=r"RuntimeError: \"conv2d_input_grad\" not implemented for 'ComplexFloat'",
        why=WHY_NO_COMPLEX,
    ),
    "conv2d with a weight of 3 dimensions": Deviation(
        **both("conv2d", ones(1, 1, 4, 3), ones(1, 2, 2), padding="same"),
        torch_says=r"Expected 3-dimensional input for 3-dimensional weight",
        we_say=r"Expected 4D weight .* but got weight of size: \[1, 2, 2\]",
        why="the argument to change is the weight, not the input",
        instead_of="OpInfo: Expected 3-dimensional input for 3-dimensional weight",
    ),
    "MaxPool2d(3, padding=5)": Deviation(
        torchs=lambda: nn.MaxPool2d(3, padding=5)(ones(1, 1, 10, 10)),
        torch_says=r"RuntimeError: pad should be at most half of effective kernel size",
        ours=lambda: bp.MaxPoolBP2d(3, padding=5),
        we_say=r"padding must be at most half of kernel_size",
        why="found when the layer is built, not when it is called",
        instead_of="ModuleInfo: pad should be at most half of effective kernel size",
    ),
    "MaxPool2d(2, stride=0)": Deviation(
        torchs=lambda: nn.MaxPool2d(2, stride=0)(ones(1, 1, 4, 4)),
        torch_says=r"RuntimeError: stride should not be zero",
        ours=lambda: bp.MaxPoolBP2d(2, stride=0),
        we_say=r"ValueError: stride must be an int >= 1 or two of them, but got 0",
        why="found when the layer is built, not when it is called",
    ),
    "max_pool2d, its indices changed in place": Deviation(
        torchs=lambda: gradient_after_indices_change(F.max_pool2d),
        torch_says=r"RuntimeError: one of the variables needed for gradient computation has been",
        ours=lambda: gradient_after_indices_change(f.max_pool2d),
        we_say=r"torch.float32 of size \[1, 1, 4, 4\]",
        why="backward uses offsets of one byte, not the indices",
    ),
    "linear with a sparse weight": Deviation(
        **both("linear", ones(2, 4), ones(3, 4).to_sparse()),
        torch_says=r"torch.float32 of size \[2, 3\]",
        we_say=r"RuntimeError: linear\(\): expected argument 'weight' to be a dense tensor",
        why="L7 is written for dense tensors; convert leaves such a layer alone",
    ),
    "linear with out=": Deviation(
        **both("linear", ones(2, 4), ones(3, 4), out=ones(2, 3)),
        torch_says=r"torch.float32 of size \[2, 3\]",
        we_say=r"TypeError: linear\(\) got an unexpected keyword argument 'out'",
        why="torch documents no out= of linear and avg_pool2d either",
    ),
    "avg_pool2d with out=": Deviation(
        **both("avg_pool2d", ones(1, 1, 4, 4), 2, out=ones(1, 1, 2, 2)),
        torch_says=r"torch.float32 of size \[1, 1, 2, 2\]",
        we_say=r"TypeError: avg_pool2d\(\) got an unexpected keyword argument 'out'",
        why="torch documents no out= of linear and avg_pool2d either",
    ),
}
