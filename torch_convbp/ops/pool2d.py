"""The pooling operators ``torch.ops.torch_convbp.{max,avg}_pool2d*`` (L8): what torch must know of
them besides their kernels.

For each output max_pool2d saves an *offset*: the number r * S + s of the tap (r, s) that won in the
window of R x S taps, in one byte where that is enough. ``indices`` turns an offset into torch's
*index* i * W + j of the input element (i, j), or -1 where a window has nothing inside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_convbp.ops import checks
from torch_convbp.ops.memory_format import new_tensor, result_format
from torch_convbp.ops.registration import Ints, fold, refuse_cuda, refuse_what_is_not_dense, unfold
from torch_convbp.ops.torch_private import Operator

max_pool2d = torch.ops.torch_convbp.max_pool2d.default
max_pool2d_input_grad = torch.ops.torch_convbp.max_pool2d_input_grad.default
max_pool2d_gather = torch.ops.torch_convbp.max_pool2d_gather.default
avg_pool2d = torch.ops.torch_convbp.avg_pool2d.default
avg_pool2d_input_grad = torch.ops.torch_convbp.avg_pool2d_input_grad.default

POOLS = (max_pool2d, max_pool2d_input_grad, max_pool2d_gather, avg_pool2d, avg_pool2d_input_grad)


def _like(tensor: Tensor, size: Ints, memory_format: torch.memory_format | None = None) -> Tensor:
    """An empty tensor of that size in the format of the given one, or in the one asked for."""
    return new_tensor(tensor, size, result_format(tensor, tensor, memory_format))


@torch.library.register_fake("torch_convbp::max_pool2d")
def _(input: Tensor, kernel_size: Ints, *geometry: Any) -> tuple[Tensor, Tensor]:
    checks.check_tensors("max_pool2d", input=input)
    size = checks.pool2d_output_size(input.shape, kernel_size, *geometry)
    output = _like(input, size)
    return output, torch.empty_like(output, dtype=checks.offset_dtype(kernel_size))


@torch.library.register_fake("torch_convbp::max_pool2d_input_grad")
def _(
    input_size: Ints,
    delta: Tensor,
    offset: Tensor,
    kernel_size: Ints,
    *geometry: Any,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    checks.check_tensors("max_pool2d_input_grad", delta=delta)
    size = checks.pool2d_output_size(input_size, kernel_size, *geometry)
    checks.check_same_size("delta", delta.shape, "the output", size)
    checks.check_offset(offset, "delta", kernel_size, size, delta.device)
    return _like(delta, input_size, memory_format)


@torch.library.register_fake("torch_convbp::max_pool2d_gather")
def _(input: Tensor, offset: Tensor, kernel_size: Ints, *geometry: Any) -> Tensor:
    checks.check_tensors("max_pool2d_gather", input=input)
    size = checks.pool2d_output_size(input.shape, kernel_size, *geometry)
    checks.check_offset(offset, "input", kernel_size, size, input.device)
    return _like(input, size)


def _avg_output_size(
    input_size: Ints,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> list[int]:
    checks.check_divisor(divisor_override)
    return checks.pool2d_output_size(input_size, kernel_size, stride, padding, (1, 1), ceil_mode)


@torch.library.register_fake("torch_convbp::avg_pool2d")
def _(input: Tensor, *geometry: Any) -> Tensor:
    checks.check_tensors("avg_pool2d", input=input)
    return _like(input, _avg_output_size(input.shape, *geometry))


@torch.library.register_fake("torch_convbp::avg_pool2d_input_grad")
def _(
    input_size: Ints,
    delta: Tensor,
    *geometry: Any,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    checks.check_tensors("avg_pool2d_input_grad", delta=delta)
    size = _avg_output_size(input_size, *geometry)
    checks.check_same_size("delta", delta.shape, "the output", size)
    return _like(delta, input_size, memory_format)


def indices(
    offset: Tensor,
    input_size: Ints,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
) -> Tensor:
    """torch's indices of the offsets."""
    height, width = input_size[2:]
    tap = offset.long()
    m = torch.arange(offset.shape[2], device=offset.device)[:, None]
    n = torch.arange(offset.shape[3], device=offset.device)
    i = m * stride[0] - padding[0] + tap // kernel_size[1] * dilation[0]
    j = n * stride[1] - padding[1] + tap % kernel_size[1] * dilation[1]
    inside = (tap >= 0) & (tap < kernel_size[0] * kernel_size[1])
    inside = inside & (i >= 0) & (i < height) & (j >= 0) & (j < width)
    return torch.where(inside, i * width + j, -1)


# Every map is pooled by itself: a dimension that torch.vmap adds is more batch.


def _batch_rule(operator: Operator, tensors: tuple[int, ...]) -> Callable[..., Any]:
    """A rule for an operator whose arguments number ``tensors`` are tensors."""

    def rule(info: Any, in_dims: Any, *args: Any, **options: Any) -> Any:
        size, folded = info.batch_size, list(args)
        for position in tensors:
            folded[position] = fold(args[position], in_dims[position], size, 0)
        if isinstance(args[0], Tensor):
            batch = (
                args[0].shape[0] if in_dims[0] is None else args[0].movedim(in_dims[0], 0).shape[1]
            )
        else:  # the input's size
            batch = args[0][0]
            folded[0] = [size * batch, *args[0][1:]]
        return unfold(operator(*folded, **options), 0, (size, batch))

    return rule


for _operator, _tensors in (
    (max_pool2d, (0,)),
    (max_pool2d_input_grad, (1, 2)),
    (max_pool2d_gather, (0, 1)),
    (avg_pool2d, (0,)),
    (avg_pool2d_input_grad, (1,)),
):
    torch.library.register_vmap(_operator, _batch_rule(_operator, _tensors))

refuse_what_is_not_dense(POOLS)
refuse_cuda(POOLS)
